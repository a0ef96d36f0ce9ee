"""The quickstart in a real browser: the template opens, the page makes the graph we test, and Run runs it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from .conftest import photograph
from .server import PACK_NAME
from .workflows import WORKFLOWS, read_graph

websocket = pytest.importorskip("websocket", reason="pip install websocket-client to drive a browser")

from .browser import Browser, find_chromium  # noqa: E402 (it needs websocket)

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
SPINNER = "document.querySelector('.p-progressspinner')"
READY = f"!!(window.app?.graph && document.querySelector('canvas') && !{SPINNER})"
OURS = "window.app.graph.nodes.filter(node => node.type.startsWith('HYWU_')).length"


@pytest.fixture
def page(server, tmp_path):
    if (executable := find_chromium()) is None:
        pytest.skip("no Chromium here: install one or set CHROMIUM_PATH")
    with Browser(executable, tmp_path / "profile") as browser:
        yield browser


def open_template(page: Browser, server, name: str) -> None:
    """By its address; older frontends are handed the file that their template browser would read."""
    page.open(f"{server.url}/?template={name}&source={PACK_NAME}")
    page.wait_for(READY)
    try:
        page.wait_for(OURS, seconds=15)
    except TimeoutError:
        file = f"/api/workflow_templates/{PACK_NAME}/{name}.json"
        page.evaluate(f"fetch('{file}').then(r => r.json()).then(file => window.app.loadGraphData(file))")
        page.wait_for(OURS)


def test_the_quickstart_opens_runs_and_shows_the_picture(page, server, tmp_path):
    server.put_image("example.png", photograph())
    open_template(page, server, "quickstart")
    shown = page.evaluate("window.app.graphToPrompt().then(graph => graph.output)")
    path = next(path for path in WORKFLOWS if path.stem == "quickstart")
    ours = read_graph(path, server.get("/object_info"))
    assert {key: (node["class_type"], node["inputs"]) for key, node in shown.items()} == {
        key: (node["class_type"], node["inputs"]) for key, node in ours.items()
    }
    page.evaluate("window.app.queuePrompt(0)")
    save = next(key for key, node in ours.items() if node["class_type"] == "SaveImage")
    page.wait_for(f"window.app.graph.getNodeById({save}).imgs?.[0]?.naturalWidth", seconds=120)
    page.evaluate("new Promise(done => setTimeout(done, 6000))")  # until the notice that it is done is gone
    target = Path(os.environ.get("HYWU_SCREENSHOTS", tmp_path)) / f"quickstart_{server.install.version}.png"
    assert page.screenshot(target).stat().st_size > 20_000
    assert not [line for line in page.console if "hywu" in line.lower()], json.dumps(page.console, indent=1)
