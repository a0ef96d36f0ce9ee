"""How strongly each linear of a backbone is changed: the norms of an update by band, layer and module.

The table is what pictures of an adapter show: in `heat_map`, and in the web extension as plain data. It
needs nothing but the adapter: bands, layers and modules are read from the target names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

import torch

from .adapter import Adapter
from .algebra import norms

OUTSIDE = "(outside the layers)"
WHOLE_LAYER = "(the layer itself)"
DIGITS = 5  # significant ones in the payload, which crosses the network with every run

_EXPERT = re.compile(r"(^|\.)experts\.\d+(?=\.|$)")

Norm = float | None


@dataclass(frozen=True)
class NormBand:
    """The norms of one ModuleList: a row for each of `layers`, in it a number for each of `modules`.

    A norm is None where the adapter has no such target, or where it is not a finite number.
    """

    name: str
    layers: tuple[int, ...]
    modules: tuple[str, ...]
    norms: tuple[tuple[Norm, ...], ...]

    @property
    def total(self) -> float:
        """Frobenius norm of the band's whole update."""
        return sqrt(sum(norm**2 for row in self.norms for norm in row if norm is not None))


@dataclass(frozen=True)
class NormTable:
    """The norms of one adapter of a batch: which one (`index`, of `batch`), and its bands."""

    title: str
    bands: tuple[NormBand, ...]
    index: int = 0
    batch: int = 1

    @property
    def largest(self) -> float:
        """The largest norm of a module in a layer."""
        found = (norm for band in self.bands for row in band.norms for norm in row if norm is not None)
        return max(found, default=0.0)

    @property
    def total(self) -> float:
        """Frobenius norm of the whole update."""
        return sqrt(sum(band.total**2 for band in self.bands))

    def strongest(self, count: int) -> list[tuple[str, float]]:
        """The modules that are changed most: their paths in the backbone and their norms."""
        found = [
            (_path(band.name, layer, module), norm)
            for band in self.bands
            for layer, row in zip(band.layers, band.norms, strict=True)
            for module, norm in zip(band.modules, row, strict=True)
            if norm is not None
        ]
        return sorted(found, key=lambda item: -item[1])[:count]

    def payload(self) -> dict[str, Any]:
        """Plain data for JSON, with numbers of `DIGITS` digits: what the web extension draws."""
        return {
            "title": self.title,
            "bands": [
                {
                    "name": band.name,
                    "layers": list(band.layers),
                    "modules": list(band.modules),
                    "norms": [[_rounded(norm) for norm in row] for row in band.norms],
                }
                for band in self.bands
            ],
            "largest": _rounded(self.largest),
            "total": _rounded(self.total),
            "index": self.index,
            "batch": self.batch,
        }


@torch.no_grad()
def norm_table(adapter: Adapter, index: int = 0, title: str = "") -> NormTable:
    """The table of one adapter of the batch; a negative index counts from the end.

    Norms are Frobenius norms of `scale * B @ A`; the experts of a module count together, as one axis of a
    target or as modules of their own (`mlp.experts.7.w1`). Raises `HywuError` for an index outside the batch.
    """
    found = norms(adapter.select(index))
    values = torch.cat(list(found.values())).tolist()  # one synchronisation for all
    return arrange(dict(zip(found, values, strict=True)), title, range(adapter.batch)[index], adapter.batch)


def arrange(values: Mapping[str, float], title: str = "", index: int = 0, batch: int = 1) -> NormTable:
    """Norms by target name, as a table: what several targets of one cell have adds up as their squares do."""
    cells: dict[str, dict[tuple[int, str], float]] = {}
    for name, norm in values.items():
        band, layer, module = place(name)
        known = cells.setdefault(band, {})
        known[layer, module] = _together(known.get((layer, module)), norm)
    # What is outside the layers comes last, wherever a file had it.
    names = sorted(cells, key=lambda name: name == OUTSIDE)
    return NormTable(title, tuple(_band(name, cells[name]) for name in names), index, batch)


def place(target: str) -> tuple[str, int, str]:
    """(band, layer, module) of a target: `blocks.3.attn.to_q` is in layer 3 of `blocks`, module `attn.to_q`.

    The outermost number is the layer, as in `LoraSpec`; a name without one is outside the layers.
    """
    parts = target.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if number is None:
        return OUTSIDE, 0, target
    module = _EXPERT.sub(r"\1experts", ".".join(parts[number + 1 :]))
    return ".".join(parts[:number]), int(parts[number]), module or WHOLE_LAYER


def _path(band: str, layer: int, module: str) -> str:
    if band == OUTSIDE:
        return module
    return ".".join(part for part in (band, str(layer), module) if part and part != WHOLE_LAYER)


def _band(name: str, cells: Mapping[tuple[int, str], float]) -> NormBand:
    layers = tuple(sorted({layer for layer, _ in cells}))
    modules = tuple(dict.fromkeys(module for _, module in cells))  # in the order of first appearance
    rows = tuple(tuple(_finite(cells.get((layer, module))) for module in modules) for layer in layers)
    return NormBand(name, layers, modules, rows)


def _together(first: float | None, second: float) -> float:
    return second if first is None else sqrt(first**2 + second**2)


def _finite(norm: float | None) -> Norm:
    """JSON has no word for the others, and a browser would refuse the whole message."""
    return norm if norm is not None and isfinite(norm) else None


def _rounded(norm: Norm) -> Norm:
    return None if norm is None else float(f"{norm:.{DIGITS}g}")
