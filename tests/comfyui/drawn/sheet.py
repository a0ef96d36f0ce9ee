"""A workflow file in the making: nodes in columns, in the interface's own format (version 0.4).

What a node's sockets and widgets are comes from a running ComfyUI's `/object_info`; a definition names only
the values that differ from the defaults. Positions and sizes are in the canvas's pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..workflows import WIDGETS, ObjectInfo, Spec, companions, default_value, input_specs

TITLE = 30  # of a node; it stands above the node's position
SLOT = 20
WIDGET = 24
GAP = 28
MUTED = 2
# What our nodes show under their widgets after a run: lines of a report, the picture of a LoRA.
SHOWN = {
    "HYWU_Condition": 24,
    "HYWU_GenerateLoRA": 330,
    "HYWU_ApplyLoRA": 48,
    "HYWU_SaveAdapter": 48,
    "HYWU_LoadAdapter": 24,
    "HYWU_CombineAdapters": 24,
    "HYWU_InspectAdapter": 380,
}
NOTES = Path(__file__).with_name("notes")
NOTE = ("#432", "#653")
_SPACE = 20  # around the nodes of a group


@dataclass(frozen=True)
class Link:
    """An output of a node."""

    node: int
    slot: int
    kind: str


@dataclass(frozen=True)
class Node:
    """A node that stands on the sheet."""

    id: int
    entry: dict[str, Any]

    def __getitem__(self, slot: int) -> Link:
        output = self.entry["outputs"][slot]
        return Link(self.id, slot, output["type"])


def note_text(name: str) -> str:
    """A workflow's own note, from `notes/NAME.md`; lines of a paragraph are joined."""
    text = (NOTES / f"{name}.md").read_text(encoding="utf-8").strip()
    return re.sub(r"(?<!\n)\n(?=[^\s#|-])(?!\d+\. )", " ", text)


@dataclass
class Sheet:
    """Nodes from left to right in columns, each column from top to bottom."""

    nodes: ObjectInfo
    name: str
    _entries: list[dict[str, Any]] = field(default_factory=list)
    _links: list[list[Any]] = field(default_factory=list)
    _groups: list[dict[str, Any]] = field(default_factory=list)
    _x: float = 0
    _y: float = 0
    _width: float = 300
    _left: float = 0
    _members: list[dict[str, Any]] = field(default_factory=list)

    def column(
        self, name: str, width: float = 300, color: str = "#3f789e", beside: bool = True, top: float = 0
    ) -> None:
        """Begin a column; nodes go into it from now on. `beside` False puts it under the one before."""
        bottom = self._close()
        if self._groups and beside:
            self._x += self._width + 60
        self._y = top if beside else bottom
        self._width = width
        self._groups.append({"title": name, "color": color, "font_size": 24, "flags": {}})

    def add(
        self,
        kind: str,
        *,
        title: str | None = None,
        height: float | None = None,
        muted: bool = False,
        models: list[dict[str, str]] | None = None,
        **inputs: Any,
    ) -> Node:
        """A node under the last one; `inputs` are links, or values of widgets.

        `height` is for nodes with a picture or a text area. KeyError or ValueError for what the node has not.
        """
        known = self.nodes[kind]
        specs = dict(input_specs(known))
        if unknown := inputs.keys() - specs.keys():
            raise ValueError(f"{kind} has no input {', '.join(sorted(unknown))}; it has {', '.join(specs)}.")
        names = [n for n, (k, _) in specs.items() if isinstance(k, list) or k in WIDGETS]
        sockets = [n for n in specs if n not in names]
        entry: dict[str, Any] = {
            "id": len(self._entries) + 1,
            "type": kind,
            "pos": [self._x, self._y],
            "flags": {},
            "order": len(self._entries),
            "mode": MUTED if muted else 0,
            "inputs": [
                {"name": n, "type": specs[n][0]} | ({"shape": 7} if _optional(known, n) else {})
                for n in sockets
            ],
            "outputs": [
                {"name": name, "type": output, "links": []}
                for name, output in zip(known["output_name"], known["output"], strict=True)
            ],
            "properties": {"Node name for S&R": kind} | ({"models": models} if models else {}),
        }
        if title:
            entry["title"] = title
        entry["inputs"] += [
            {
                "name": n,
                "type": "COMBO" if isinstance(specs[n][0], list) else specs[n][0],
                "widget": {"name": n},
            }
            for n in names
        ]
        entry["widgets_values"] = [
            value
            for name in names
            for value in (_value(inputs.get(name), specs[name]), *companions(specs[name][1], values=True))
        ]
        for slot, socket in enumerate(entry["inputs"]):
            source = inputs.get(socket["name"])
            socket["link"] = self._connect(source, entry, slot, socket) if isinstance(source, Link) else None
        rows = max(len(sockets), len(entry["outputs"]))
        areas = sum(70 for n in names if specs[n][1].get("multiline") and not isinstance(inputs.get(n), Link))
        self._place(entry, height or rows * SLOT + len(entry["widgets_values"]) * WIDGET + areas + 14)
        if kind in SHOWN:
            self._y += SHOWN[kind]
            self._left = self._y - TITLE - GAP
        return Node(entry["id"], entry)

    def note(self, title: str, height: float) -> None:
        """The workflow's own note."""
        color, background = NOTE
        entry = {
            "id": len(self._entries) + 1,
            "type": "MarkdownNote",
            "pos": [self._x, self._y],
            "flags": {},
            "order": len(self._entries),
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {"Node name for S&R": "MarkdownNote"},
            "title": title,
            "color": color,
            "bgcolor": background,
            "widgets_values": [note_text(self.name)],
        }
        self._place(entry, height)

    def file(self, requires: str | None = None) -> dict[str, Any]:
        """The workflow file's contents; `requires` is the oldest ComfyUI it works on."""
        self._close()
        extra: dict[str, Any] = {"ds": {"scale": 0.7, "offset": [60, 140]}}
        if requires:
            extra["hywu"] = {"requires-comfyui": requires}
        return {
            "last_node_id": len(self._entries),
            "last_link_id": len(self._links),
            "nodes": self._entries,
            "links": self._links,
            "groups": self._groups,
            "config": {},
            "extra": extra,
            "version": 0.4,
        }

    def _place(self, entry: dict[str, Any], height: float) -> None:
        entry["size"] = [self._width, height]
        self._y += height + TITLE + GAP
        self._entries.append(entry)
        self._members.append(entry)

    def _connect(self, source: Link, entry: dict[str, Any], slot: int, socket: dict[str, Any]) -> int:
        if socket["type"] not in (source.kind, "*"):
            raise ValueError(f"{entry['type']}.{socket['name']} takes {socket['type']}, not {source.kind}.")
        link = len(self._links) + 1
        self._links.append([link, source.node, source.slot, entry["id"], slot, source.kind])
        self._entries[source.node - 1]["outputs"][source.slot]["links"].append(link)
        return link

    def _close(self) -> float:
        """Draw the group around the column's nodes; where the next one may begin."""
        if not self._members:
            return 0
        top = min(entry["pos"][1] for entry in self._members) - TITLE - 50
        ends = [entry["pos"][1] + entry["size"][1] for entry in self._members]
        bottom = max(self._left, *ends) + _SPACE
        self._groups[-1]["bounding"] = [
            self._x - _SPACE,
            top,
            self._width + 2 * _SPACE,
            bottom - top,
        ]
        self._members, self._left = [], 0
        return bottom + TITLE + 70


def _optional(known: dict[str, Any], name: str) -> bool:
    return name in known["input"].get("optional", {})


def _value(given: Any, spec: Spec) -> Any:
    return default_value(spec) if given is None or isinstance(given, Link) else given
