"""The nodes in a real browser: templates open and run, and progress and heat maps are shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hywu_core.heat_map import colour

from .conftest import photograph
from .graphs import Builder
from .workflows import WORKFLOWS, read_graph

pytest.importorskip("websocket", reason="pip install websocket-client to drive a browser")

from .browser import Browser, find_chromium
from .page import Cell, Page

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

GENERATE, APPLY, INSPECT = "HYWU_GenerateLoRA", "HYWU_ApplyLoRA", "HYWU_InspectAdapter"
LISTEN = "window.comfyAPI.api.api.addEventListener('progress', ({ detail }) => window.seen.push(detail.node))"


@pytest.fixture
def page(server, tmp_path):
    if (executable := find_chromium()) is None:
        pytest.skip("no Chromium here: install one or set CHROMIUM_PATH")
    with Browser(executable, tmp_path / "profile") as browser:
        yield Page(browser, server.url)


def in_its_colour(cell: Cell, largest: float) -> bool:
    """Whether a cell has the colour of its norm, but for rounding."""
    return all(abs(a - b) <= 2 for a, b in zip(cell.colour, colour(cell.norm / largest), strict=True))


def test_the_quickstart_opens_runs_and_shows_its_lora(page, server, tmp_path):
    server.put_image("example.png", photograph())
    page.open_template("quickstart")
    path = next(path for path in WORKFLOWS if path.stem == "quickstart")
    ours = read_graph(path, server.get("/object_info"))
    graph, workflow = page.graph(), page.workflow()
    assert {key: (node["class_type"], node["inputs"]) for key, node in graph.items()} == {
        key: (node["class_type"], node["inputs"]) for key, node in ours.items()
    }
    assert not page.shows(GENERATE)

    page.evaluate(f"window.seen = []; {LISTEN}")
    page.run()
    save, sampler = (
        next(key for key, node in ours.items() if node["class_type"] == kind)
        for kind in ("SaveImage", "KSampler")
    )
    page.wait_for(f"window.app.graph.getNodeById({save}).imgs?.[0]?.naturalWidth", seconds=240)
    assert sampler in page.evaluate("window.seen.map(String)")
    page.wait_for_view(GENERATE)
    cells = page.heat_map(GENERATE)
    largest = max(cell.norm for cell in cells)
    assert len(cells) > 20
    assert all(in_its_colour(cell, largest) for cell in cells)
    assert page.report(GENERATE)

    strongest = max(cells, key=lambda cell: cell.norm)
    page.browser.point(*strongest.at)
    assert f".{strongest.layer}.{strongest.module}  " in page.told(GENERATE)
    page.browser.point(5, 5)

    # Nothing of it goes into the file or to the server.
    assert page.graph() == graph
    assert saved_values(page.workflow()) == saved_values(workflow)
    folder, version = Path(os.environ.get("HYWU_SCREENSHOTS", tmp_path)), server.install.version
    assert page.screenshot(folder / f"quickstart_{version}.png").stat().st_size > 20_000
    for node in (GENERATE, APPLY) if "HYWU_SCREENSHOTS" in os.environ else ():  # for the help pages
        page.look_at(node)
        page.screenshot(folder / f"{node}_{version}.png")
    assert not page.complaints()


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_two_adapters_stand_beside_each_other_and_a_batch_has_pages(page, server, vue, tmp_path):
    if vue and not server.install.at_least("0.33"):
        pytest.skip("Vue nodes are an experiment in this ComfyUI")
    graph = two_adapters()
    page.open()
    page.open_graph(graph.nodes)
    if vue:
        page.use_vue_nodes()
    page.run()
    page.look_at(INSPECT)
    page.wait_for_view(INSPECT)
    panels = page.evaluate("window.app.nodeOutputs['8'].hywu_heat_map.map(table => JSON.parse(table).title)")
    assert panels == ["adapter 1 of 0 to 1", "other", "difference"]
    cells = page.heat_map(INSPECT)
    largest = max(cell.norm for cell in cells)
    assert len(cells) % 3 == 0
    assert all(in_its_colour(cell, largest) for cell in cells)
    assert any(line.startswith("cosine of the angle") for line in page.report(INSPECT))

    page.look_at(GENERATE)
    page.wait_for_view(GENERATE)
    first = [cell.norm for cell in page.heat_map(GENERATE)]
    assert page.turn_page(GENERATE) == "LoRA 1 of 0 to 1"
    second = page.heat_map(GENERATE)
    assert [cell.norm for cell in second] != first
    assert all(in_its_colour(cell, max(*first, *(c.norm for c in second))) for cell in second)
    if target := os.environ.get("HYWU_SCREENSHOTS"):
        page.look_at(INSPECT)
        page.screenshot(Path(target) / f"inspect_{server.install.version}_{'vue' if vue else 'canvas'}.png")

    # A page opened anew gets it from ComfyUI's cache; where ComfyUI can, of other nodes than outputs too.
    page.open()
    page.open_graph(graph.nodes)
    page.run()
    page.look_at(INSPECT)
    page.wait_for_view(INSPECT)
    if server.get(f"/object_info/{GENERATE}")[GENERATE].get("has_intermediate_output"):
        page.wait_for(
            f"window.app.graph.nodes.find(n => n.type === '{GENERATE}').widgets.at(-1).name === 'hywu_view'"
        )
    assert not page.complaints()


def saved_values(workflow: dict) -> dict[int, list]:
    """What a workflow file holds of our nodes' widgets."""
    ours = (node for node in workflow["nodes"] if node["type"].startswith("HYWU_"))
    return {node["id"]: node.get("widgets_values") for node in ours}


def two_adapters() -> Builder:
    """A batch of two LoRAs, and one: Inspect Adapter compares the second with it."""
    graph = Builder()
    generator = graph.add("HYWU_LoadGenerator", generator_name="random_generator.safetensors")
    photo = graph.add("LoadImage", outputs=2, image="photo.png")[0]
    pair = graph.add("ImageBatch", image1=photo, image2=photo)
    adapters = []
    for image, prompt in ((pair, "make it brighter\nmake it darker"), (photo, "turn it upside down")):
        condition = graph.add(
            "HYWU_Condition", generator=generator, image=image, prompt=prompt, one_prompt_per_line=True
        )
        adapters.append(graph.add(GENERATE, outputs=2, generator=generator, condition=condition)[0])
    graph.add(INSPECT, outputs=2, adapter=adapters[0], other=adapters[1], index=1)
    return graph
