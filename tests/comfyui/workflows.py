"""Workflow files of the interface, as the graphs the server runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .server import PACK, Graph

WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
_NOTES = ("Note", "MarkdownNote")
WIDGETS = ("STRING", "INT", "FLOAT", "BOOLEAN", "COMBO")
_RUNS = 0  # a node's mode; 2 is muted, 4 bypassed

ObjectInfo = dict[str, dict[str, Any]]
Spec = tuple[Any, dict[str, Any]]  # an input's kind (an old combo's is the list of its choices) and options


def find_workflow(name: str) -> Path:
    """The file of a name."""
    return next(path for path in WORKFLOWS if path.stem == name)


def read_workflow(path: Path) -> dict[str, Any]:
    """The file as the interface saved it."""
    return json.loads(path.read_text(encoding="utf-8"))


def oldest_comfyui(path: Path) -> str:
    """The version a workflow says it needs; 0 if it says nothing."""
    return read_workflow(path)["extra"].get("hywu", {}).get("requires-comfyui", "0")


def read_graph(path: Path, nodes: ObjectInfo, unmute: bool = False) -> Graph:
    """A workflow file in API format; AssertionError where it does not fit the nodes.

    Muted nodes are left out, as the interface does, unless they are to be unmuted.
    """
    workflow = read_workflow(path)
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
        if unmute or node["mode"] == _RUNS:
            graph[str(node["id"])] = {"class_type": kind, "inputs": _inputs(node, known, links)}
    return graph


def _inputs(node: dict[str, Any], known: dict[str, Any], links: dict[int, list]) -> dict[str, Any]:
    """Values of the widgets and links, by input name."""
    specs = dict(input_specs(known))
    names = [name for name, (kind, _) in specs.items() if isinstance(kind, list) or kind in WIDGETS]
    widgets = [slot for name in names for slot in (name, *companions(specs[name][1]))]
    values = node.get("widgets_values", [])
    assert len(values) <= len(widgets), f"{node['type']} has widgets {widgets}, the file holds {values}"
    # Newer versions may have given a node more widgets; the interface leaves those at their defaults.
    inputs = {name: default_value(specs[name]) for name in names}
    inputs |= {name: value for name, value in zip(widgets, values, strict=False) if name in specs}
    for name in names:
        assert fits(inputs[name], specs[name]), f"{node['type']}.{name} cannot be {inputs[name]!r}"
    for socket in node["inputs"]:
        assert socket["name"] in specs, f"{node['type']} has no input {socket['name']}"
        if socket["link"] is not None:
            source, slot, kind = links[socket["link"]]
            wanted = specs[socket["name"]][0]
            assert wanted in (kind, "*"), f"{node['type']}.{socket['name']} is no {kind}"
            inputs[socket["name"]] = [source, slot]
    return inputs


def choices(spec: Spec) -> list[Any] | None:
    """What a combo offers; None for another widget."""
    kind, options = spec
    return kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None


def default_value(spec: Spec) -> Any:
    """What the interface puts into a widget that nothing was said about."""
    kind, options = spec
    if "default" in options:
        return options["default"]
    if offered := choices(spec):
        return offered[0]
    # A combo of files that are not there, an old one's empty list for example, holds nothing.
    return (
        {"STRING": "", "INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(kind) if isinstance(kind, str) else None
    )


def fits(value: Any, spec: Spec) -> bool:
    """Whether a widget takes a value; a file of models or pictures that is not on this machine passes."""
    kind, options = spec
    if (offered := choices(spec)) is not None:
        return value in offered or not offered or str(value).endswith((".safetensors", ".png", ".jpg"))
    if kind == "STRING":
        return isinstance(value, str)
    if kind == "BOOLEAN":
        return isinstance(value, bool)
    number = isinstance(value, int if kind == "INT" else (int, float)) and not isinstance(value, bool)
    return number and options.get("min", value) <= value <= options.get("max", value)


def input_specs(known: dict[str, Any]) -> Iterator[tuple[str, Spec]]:
    """Inputs of a node in the order of its widgets: name, kind (a list for an old combo) and options."""
    for group in ("required", "optional"):
        for name, (kind, *options) in known["input"].get(group, {}).items():
            yield name, (kind, options[0] if options else {})


def companions(options: dict[str, Any], values: bool = False) -> Iterator[str]:
    """Widgets the interface adds by itself, which have a value in the file and none on the server.

    Their names, which are no input's, or the values that leave the one they accompany alone.
    """
    if options.get("control_after_generate"):
        yield "fixed" if values else "(control after generate)"
    if options.get("image_upload"):
        yield "image" if values else "(upload)"
