"""Record what a real ComfyUI answers its page, and one run of the quickstart: `python -m tests.web.record`.

It needs a ComfyUI (COMFYUI_PATH, the newest one first) and a Chromium, and writes `recorded/answers.json` and
`recorded/run.json`. Record anew when nodes' sockets, the quickstart or the interface's version change.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import urllib.error
from pathlib import Path
from typing import Any

from ..comfyui.browser import Browser, find_chromium
from ..comfyui.conftest import photograph
from ..comfyui.page import Page
from ..comfyui.server import ComfyServer, find_installs
from .standin import RECORDED, Message

_LARGEST = 300_000  # bytes of both files together
# Answered by the stand-in itself, or not needed: templates of others, what ran before.
_LEFT_OUT = (
    "/object_info",
    "/extensions",
    "/view",
    "/prompt",
    "/workflow_templates",
    "/global_subgraphs/",
    "/history",
    "/jobs",
    "/i18n",
)
_KEEP_FRAMES = """
window.frames_received = [];
const Real = window.WebSocket;
window.WebSocket = class extends Real {
  constructor(...settings) {
    super(...settings);
    this.addEventListener("message", ({ data }) => typeof data === "string" && frames_received.push(data));
  }
};
"""
_ASKED = "performance.getEntriesByType('resource').map(entry => entry.name)"
_SAVED = "window.app.graph.nodes.find(node => node.type === 'SaveImage').imgs?.[0]?.naturalWidth"


def main() -> int:
    """Record; 2 where something it needs is missing."""
    installs, missing = find_installs()
    browser = find_chromium()
    if not installs or browser is None:
        print(missing or "no Chromium here: install one or set CHROMIUM_PATH")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        server = ComfyServer(installs[0], Path(folder) / "comfyui")
        server.base.mkdir()
        server.install_pack()
        server.put_image("example.png", photograph())
        server.start()
        try:
            answers, run = record(server, browser, Path(folder))
        finally:
            server.stop()
    files = {"answers.json": answers, "run.json": run}
    texts = {name: _without_machine(_lines(data), folder) for name, data in files.items()}
    if (size := sum(map(len, texts.values()))) > _LARGEST:
        print(f"The recording has {size} bytes, more than {_LARGEST}; leave out what the page does not need.")
        return 2
    for name, text in texts.items():
        (RECORDED / name).write_text(text + "\n", encoding="utf-8")
        print(f"{RECORDED / name}: {len(text)} bytes")
    return 0


def record(server: ComfyServer, executable: str, folder: Path) -> tuple[dict[str, Any], list[Message]]:
    """Open the quickstart and run it; the answers by address, and the messages of the run."""
    with Browser(executable, folder / "profile") as browser:
        browser.before_every_page(_KEEP_FRAMES)
        page = Page(browser, server.url)
        page.open_template("quickstart")
        graph = page.graph()
        asked = page.evaluate(_ASKED)
        page.evaluate("frames_received.length = 0")
        page.run()
        page.wait_for(_SAVED, seconds=600)
        page.wait_for("frames_received.some(text => text.includes('execution_success'))")
        run = [json.loads(text) for text in page.evaluate("frames_received")]
    used = {node["class_type"] for node in graph.values()}
    answers = {"/object_info": _reduced(server.get("/object_info"), used)}
    for address in sorted(set(asked)):
        path = address.removeprefix(server.url).removeprefix("/api")
        if not address.startswith(f"{server.url}/api/") or path.startswith(_LEFT_OUT):
            continue
        try:
            answers[path] = server.get(f"/api{path}")
        except (urllib.error.HTTPError, json.JSONDecodeError):
            continue  # the page lives with it
    answers["/system_stats"]["system"]["argv"] = ["main.py"]
    answers["/global_subgraphs"] = answers["/i18n"] = {}
    return answers, [_timeless(message) for message in run]


def _reduced(nodes: dict[str, Any], used: set[str]) -> dict[str, Any]:
    """Our nodes, and of the others those in the graph, without their explanations."""
    kept = {}
    for name, node in nodes.items():
        if name.startswith("HYWU_"):
            kept[name] = node
        elif name in used:
            kept[name] = _without_words(node) | {"description": ""}
    return kept


def _without_words(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_words(value) for key, value in data.items() if key != "tooltip"}
    return [_without_words(item) for item in data] if isinstance(data, list) else data


def _lines(data: dict[str, Any] | list[Any]) -> str:
    """JSON with a line for each answer or message."""
    if isinstance(data, list):
        return "[\n" + ",\n".join(json.dumps(item) for item in data) + "\n]"
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in data.items()) + "\n}"


def _timeless(message: Message) -> Message:
    message["data"].pop("timestamp", None)
    return message


def _without_machine(text: str, folder: str) -> str:
    """The text; AssertionError if it names folders of this machine."""
    for place in (folder, str(Path.home()), os.getcwd()):
        text = text.replace(json.dumps(place)[1:-1], "")
    assert not (found := re.findall(r'"/(?:home|root|tmp|Users)/[^"]*', text)), found
    return text


if __name__ == "__main__":
    raise SystemExit(main())
