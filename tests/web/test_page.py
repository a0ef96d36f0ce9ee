"""The web extension in the real interface and a real browser, over answers recorded from a real ComfyUI."""

from __future__ import annotations

import json
import os
from itertools import combinations
from pathlib import Path

import pytest

from hywu_core.heat_map import colour
from hywu_core.lora.norm_table import arrange

pytest.importorskip("websocket", reason="pip install websocket-client to drive a browser")
pytest.importorskip("aiohttp", reason="pip install aiohttp to stand in for ComfyUI's server")

from ..comfyui.browser import Browser, find_chromium
from ..comfyui.page import Page
from .standin import StandIn, find_interface

pytestmark = pytest.mark.browser

GENERATE, INSPECT, SAVE = "HYWU_GenerateLoRA", "HYWU_InspectAdapter", "HYWU_SaveAdapter"
NODE = "window.app.graph.nodes.find(node => node.type === '{}')"


_MISPLACED = """
import("/extensions/ComfyUI-HYWU/js/heat_map.js").then(({ neededHeight, layOut, moduleAt }) => {
  const tables = %(tables)s;
  const height = neededHeight(tables, %(width)d);
  const layout = layOut(tables, %(width)d, height);
  return layout.bands.flatMap((place) => place.band.norms.flatMap((norms, layer) => norms.map((_, module) => {
    const x = place.x + (layer + 0.5) * place.cell, y = place.y + (module + 0.5) * place.row;
    const found = moduleAt(layout, x, y);
    const right = found?.place === place && found.layer === layer && found.module === module;
    return right && x > 0 && x < %(width)d && y > 0 && y < height - 20 ? null : [layer, module, x, y];
  }))).filter(Boolean);
})"""


@pytest.fixture(scope="module")
def standin():
    if (interface := find_interface()) is None:
        pytest.skip("pip install comfyui-frontend-package to test the web extension in the real interface")
    with StandIn(interface) as standin:
        yield standin


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if (executable := find_chromium()) is None:
        pytest.skip("no Chromium here: install one or set CHROMIUM_PATH")
    with Browser(executable, tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


@pytest.fixture
def page(standin, browser):
    browser.console.clear()
    standin.pause_before = None
    page = Page(browser, standin.url)
    yield page
    standin.go_on()
    assert not page.complaints()


@pytest.fixture
def node(page):
    """A page with one node of a kind on it, which executes what a test says it did."""

    def place(kind: str) -> None:
        page.open()
        page.evaluate("window.app.loadGraphData({ nodes: [], links: [], version: 0.4 })")
        page.evaluate(
            f"(() => {{ const node = LiteGraph.createNode('{kind}'); window.app.graph.add(node);"
            " const { ds } = window.app.canvas; ds.scale = 1; ds.offset = [200, 150]; })()"
        )

    return place


def table(index: int = 0, batch: int = 1, strength: float = 1.0, title: str = "") -> dict:
    """The table of a small transformer, as the server sends it."""
    names = [f"blocks.{layer}.{name}" for layer in range(6) for name in ("attn.to_q", "mlp")]
    norms = {name: strength * (i + 1) / 16 for i, name in enumerate([*names, "norm_out", "tail.0.a"])}
    return arrange(norms, title, index, batch).payload()


def execute(page: Page, kind: str, tables: list[dict] = (), report: list[str] = ()) -> None:
    """As if a run had ended with this."""
    shown = {"hywu_heat_map": [json.dumps(table) for table in tables], "hywu_report": list(report)}
    page.evaluate(f"{NODE.format(kind)}.onExecuted({json.dumps(shown)})")


def test_a_recorded_run_of_the_quickstart_shows_progress_and_the_heat_map(page, standin, tmp_path):
    standin.pause_before = "progress"
    page.open_template("quickstart")
    sizes = page.evaluate("window.app.graph.nodes.map(node => [...node.size])")
    assert not page.shows(GENERATE)
    page.run()
    page.wait_for("window.app.graph.nodes.some(node => node.strokeStyles?.running || node.progress >= 0)")
    assert standin.prompts[-1] == page.graph()
    standin.go_on()
    page.wait_for_view(GENERATE)
    cells = page.heat_map(GENERATE)
    largest = max(cell.norm for cell in cells)
    assert len(cells) > 20
    for cell in cells:
        assert cell.colour == pytest.approx(colour(cell.norm / largest), abs=2)
    after = page.evaluate("window.app.graph.nodes.map(node => [...node.size])")
    others = page.evaluate("window.app.graph.nodes.map(node => !node.type.startsWith('HYWU_'))")
    assert [s for s, other in zip(after, others, strict=True) if other] == [
        s for s, other in zip(sizes, others, strict=True) if other
    ]
    if target := os.environ.get("HYWU_SCREENSHOTS"):
        page.screenshot(Path(target) / "recorded.png")


def test_a_node_that_has_not_run_looks_as_if_there_were_no_extension(page, node):
    node(GENERATE)
    size = page.evaluate(f"[...{NODE.format(GENERATE)}.size]")
    assert not page.shows(GENERATE)
    execute(page, GENERATE)
    page.evaluate(f"{NODE.format(GENERATE)}.onExecuted(null)")
    assert not page.shows(GENERATE)
    assert page.evaluate(f"[...{NODE.format(GENERATE)}.size]") == size


def test_the_norm_under_the_pointer_is_told(page, node):
    node(GENERATE)
    execute(page, GENERATE, [table()])
    page.wait_for_view(GENERATE)
    assert page.told(GENERATE).startswith("total norm ")
    total = page.told(GENERATE)
    for cell in page.heat_map(GENERATE):
        page.browser.point(*cell.at)
        assert page.told(GENERATE).endswith(f"{cell.module}  {cell.norm:.4g}")
        if cell.module == "mlp":
            assert page.told(GENERATE) == f"blocks.{cell.layer}.mlp  {cell.norm:.4g}"
    page.browser.point(5, 5)
    assert page.told(GENERATE) == total


def test_a_batch_is_paged_through_on_one_scale(page, node):
    node(GENERATE)
    execute(page, GENERATE, [table(i, 3, strength=0.25 * (i + 1)) for i in range(3)])
    page.wait_for_view(GENERATE)
    largest = 0.75 * 14 / 16
    for index in (0, 1, 2):
        cells = page.heat_map(GENERATE)
        assert max(cell.norm for cell in cells) == pytest.approx(largest * (index + 1) / 3, rel=1e-4)
        for cell in cells:
            assert cell.colour == pytest.approx(colour(cell.norm / largest), abs=2)
        assert page.turn_page(GENERATE) == f"LoRA {(index + 1) % 3} of 0 to 2"


@pytest.mark.parametrize("width", [260, 700])
def test_inspected_adapters_stand_beside_each_other_where_there_is_room(page, node, width):
    node(INSPECT)
    page.evaluate(f"{NODE.format(INSPECT)}.setSize([{width}, 100])")
    execute(page, INSPECT, [table(title=title) for title in ("adapter", "other", "difference")])
    page.wait_for_view(INSPECT)
    cells = page.heat_map(INSPECT)
    panels = [cells[i : i + len(cells) // 3] for i in range(0, len(cells), len(cells) // 3)]
    axis = 0 if width > 600 else 1
    for before, after in combinations(panels, 2):
        assert max(cell.at[axis] for cell in before) < min(cell.at[axis] for cell in after)


def test_reports_are_shown_and_replaced_and_the_node_grows_but_never_shrinks(page, node):
    node(SAVE)
    height = page.evaluate(f"{NODE.format(SAVE)}.size[1]")
    execute(
        page, SAVE, report=["Saved hywu/lora_00001_.safetensors to models/loras", "1 < 2 & <b>not bold</b>"]
    )
    page.wait_for_view(SAVE)
    assert page.report(SAVE)[1] == "1 < 2 & <b>not bold</b>"
    grown = page.evaluate(f"{NODE.format(SAVE)}.size[1]")
    assert grown > height
    page.evaluate(f"{NODE.format(SAVE)}.setSize([300, 900])")
    execute(page, SAVE, report=["Saved hywu/lora_00002_.safetensors to models/loras"])
    assert page.report(SAVE) == ["Saved hywu/lora_00002_.safetensors to models/loras"]
    assert page.evaluate(f"{NODE.format(SAVE)}.size[1]") == 900


def saved(page: Page, kind: str = GENERATE) -> dict:
    """What a file would hold of a node."""
    return next(node for node in page.workflow()["nodes"] if node["type"] == kind)


@pytest.fixture(params=[False, True], ids=["canvas", "vue"])
def quickstart(request, page, standin):
    """The quickstart when the page has made nodes as large as it likes; core's report nothing."""
    page.open_template("quickstart")
    nodes = page.workflow()["nodes"]
    standin.silent = {str(node["id"]) for node in nodes if not node["type"].startswith("HYWU_")}
    if request.param:
        page.use_vue_nodes()
    page.settle()
    page.click_beside()
    yield page
    standin.silent = set()
    page.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def test_a_run_leaves_the_workflow_as_it_was(quickstart):
    page = quickstart
    before, modified = page.workflow()["nodes"], page.modified()
    page.run()
    page.wait_for_view(GENERATE)
    page.click_beside()
    assert page.workflow()["nodes"] == before
    assert page.modified() == modified
    size = saved(page)["size"]
    assert page.evaluate(f"{NODE.format(GENERATE)}.size[1]") > size[1] + 100
    assert page.evaluate(f"[...{NODE.format(GENERATE)}.clone().size]") == size
    page.evaluate(f"window.app.loadGraphData({json.dumps(page.workflow())})")
    page.settle()
    assert not page.shows(GENERATE)
    assert page.evaluate(f"[...{NODE.format(GENERATE)}.size]") == size


def test_what_was_undone_after_a_run_can_be_redone(quickstart):
    page = quickstart
    titles = [saved(page, SAVE)["title"], "once", "twice"]
    for title in titles[1:]:
        page.evaluate(f"(() => {{ {NODE.format(SAVE)}.title = '{title}'; }})()")
        page.click_beside()
    page.run()
    page.wait_for_view(GENERATE)
    page.click_beside()
    for command, title in (("Undo", 1), ("Undo", 0), ("Redo", 1), ("Redo", 2)):
        page.command(f"Comfy.{command}")
        page.wait_for_view(GENERATE)
        page.click_beside()
        assert saved(page, SAVE)["title"] == titles[title]


def test_a_height_that_the_user_gives_a_node_is_saved(page, node):
    node(GENERATE)
    size = f"{NODE.format(GENERATE)}.size"
    width = saved(page)["size"][0]
    execute(page, GENERATE, [table()], ["1 LoRA"])
    needed = page.evaluate(f"{size}[1]")
    for height in (needed + 100, needed, needed + 1):
        page.evaluate(f"{NODE.format(GENERATE)}.setSize([{width}, {height}])")
        assert saved(page)["size"] == [width, height]
        execute(page, GENERATE, [table()], ["1 LoRA"])
        page.settle()
        assert page.evaluate(f"[...{size}]") == saved(page)["size"] == [width, height]


def test_a_node_as_high_as_its_view_follows_it_and_stays_as_it_was_in_the_file(page, node):
    node(GENERATE)
    height = f"{NODE.format(GENERATE)}.size[1]"
    width, own = saved(page)["size"]
    execute(page, GENERATE, [table()], ["1 LoRA"] * 4)
    long = page.evaluate(height)
    execute(page, GENERATE, [table()], ["1 LoRA"])
    assert own < page.evaluate(height) < long
    page.evaluate(f"{NODE.format(GENERATE)}.setSize([{width + 300}, {height}])")
    page.settle()
    assert saved(page)["size"] == [width + 300, own]


def test_a_collapsed_node_that_reports_is_not_changed_in_the_file(page, node):
    node(GENERATE)
    own = saved(page)["size"]
    page.evaluate(f"{NODE.format(GENERATE)}.collapse()")
    execute(page, GENERATE, [table()], ["1 LoRA"])
    page.settle()
    assert saved(page)["size"] == own
    page.evaluate(f"{NODE.format(GENERATE)}.collapse()")
    page.wait_for_view(GENERATE)
    page.settle()
    assert page.evaluate(f"{NODE.format(GENERATE)}.size[1]") > own[1]
    assert saved(page)["size"] == own


@pytest.mark.parametrize("sent", [table(), json.dumps(table())], ids=["object", "text"])
def test_outputs_that_come_with_a_workflow_are_shown(page, node, sent):
    """As when it is opened from the history, of older versions too, or in another tab of the page."""
    node(GENERATE)
    shown = {"hywu_heat_map": [sent], "hywu_report": ["1 LoRA"]}
    key = page.evaluate(f"{NODE.format(GENERATE)}.id")
    outputs = json.dumps({key: shown, "99": None})
    page.evaluate(f"(() => {{ window.app.nodeOutputs = {outputs}; }})()")
    page.wait_for_view(GENERATE)
    assert page.report(GENERATE) == ["1 LoRA"]


def test_nothing_is_saved_in_the_workflow(page, node):
    node(GENERATE)
    before = page.workflow()["nodes"][0].get("widgets_values")
    prompt = page.graph()
    execute(page, GENERATE, [table()], ["1 LoRA"])
    page.wait_for_view(GENERATE)
    assert page.workflow()["nodes"][0].get("widgets_values") == before
    assert page.graph() == prompt


def test_vue_nodes_show_the_same(page, node):
    node(GENERATE)
    page.use_vue_nodes()
    try:
        execute(page, GENERATE, [table()], ["1 LoRA"])
        page.wait_for_view(GENERATE)
        cells = page.heat_map(GENERATE)
        page.browser.point(*cells[3].at)
        assert page.told(GENERATE).endswith(f"{cells[3].module}  {cells[3].norm:.4g}")
    finally:
        page.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def test_the_page_speaks_chinese_with_chinese_users(page, node):
    page.open()
    page.evaluate("window.app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    try:
        node(GENERATE)
        execute(page, GENERATE, [table()])
        page.wait_for_view(GENERATE)
        assert page.told(GENERATE).startswith("总范数 ")
    finally:
        page.evaluate("window.app.extensionManager.setting.set('Comfy.Locale', 'en')")


def test_the_wheel_zooms_the_graph_over_a_heat_map_too(page, node):
    node(GENERATE)
    execute(page, GENERATE, [table()])
    page.wait_for_view(GENERATE)
    before = page.evaluate("window.app.canvas.ds.scale")
    page.browser.wheel(*page.heat_map(GENERATE)[0].at, -240)
    page.wait_for(f"window.app.canvas.ds.scale > {before}")


@pytest.mark.parametrize(("layers", "modules"), [(60, 12), (1, 1), (200, 40)])
@pytest.mark.parametrize("width", [150, 300, 900])
def test_every_module_has_a_place_of_its_own_inside_the_canvas(page, layers, modules, width):
    if page.evaluate("window.location.href") == "about:blank":
        page.open()
    names = [f"blocks.{i}.m{j}" for i in range(layers) for j in range(modules)]
    tables = json.dumps([arrange(dict.fromkeys(names, 1.0)).payload()] * 2)
    wrong = page.evaluate(_MISPLACED % {"tables": tables, "width": width})
    assert wrong == []
