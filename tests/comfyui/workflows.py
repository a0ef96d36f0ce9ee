"""Workflow files of the interface, as the graphs the server runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .server import PACK, Graph

WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
_NOTES = ("Note", "MarkdownNote")
_WIDGETS = ("STRING", "INT", "FLOAT", "BOOLEAN", "COMBO")
_RUNS = 0  # a node's mode; 2 is muted, 4 bypassed

ObjectInfo = dict[str, dict[str, Any]]


def read_graph(path: Path, nodes: ObjectInfo) -> Graph:
    """A workflow file in API format, muted nodes left out; AssertionError where it does not fit the nodes."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    links = {link: [str(source), slot, kind] for link, source, slot, _, _, kind in workflow["links"]}
    graph: Graph = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in _NOTES:
            continue
        assert kind in nodes, f"{path.name}: this ComfyUI has no node {kind}"
        known = nodes[kind]
        outputs = [output["type"] for output in node["outputs"]]
        # Newer versions may have given a node more of them.
        assert outputs == known["output"][: len(outputs)], f"{path.name}: {kind} has no outputs {outputs}"
        if node["mode"] == _RUNS:
            graph[str(node["id"])] = {"class_type": kind, "inputs": _inputs(node, known, links)}
    return graph


def _inputs(node: dict[str, Any], known: dict[str, Any], links: dict[int, list]) -> dict[str, Any]:
    """Values of the widgets and links, by input name."""
    specs = dict(_specs(known))
    names = [name for name, (kind, _) in specs.items() if isinstance(kind, list) or kind in _WIDGETS]
    widgets = [slot for name in names for slot in (name, *_companions(specs[name][1]))]
    values = node.get("widgets_values", [])
    assert len(values) == len(widgets), f"{node['type']} has widgets {widgets}, the file holds {values}"
    inputs = {name: value for name, value in zip(widgets, values, strict=True) if name in specs}
    for socket in node["inputs"]:
        assert socket["name"] in specs, f"{node['type']} has no input {socket['name']}"
        if socket["link"] is not None:
            source, slot, kind = links[socket["link"]]
            assert specs[socket["name"]][0] == kind, f"{node['type']}.{socket['name']} is no {kind}"
            inputs[socket["name"]] = [source, slot]
    return inputs


def _specs(known: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, dict[str, Any]]]]:
    for group in ("required", "optional"):
        for name, (kind, *options) in known["input"].get(group, {}).items():
            yield name, (kind, options[0] if options else {})


def _companions(options: dict[str, Any]) -> Iterator[str]:
    """Widgets the interface adds by itself, which have a value in the file and none on the server."""
    if options.get("control_after_generate"):
        yield "(control after generate)"
    if options.get("image_upload"):
        yield "(upload)"
