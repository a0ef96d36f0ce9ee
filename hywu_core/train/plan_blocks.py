"""Which blocks of a backbone stand for all of them in a rehearsal.

Blocks of a kind compute the same, but not the same is asked of them: targets may leave some out, and the
backward pass ends at the first that is adapted. So they are sorted by that. The first and the last of a sort
are always rehearsed, because the ends of a model are not like its middle, and one of those between is
multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..lora import LoraSpec
from ..lora.spec import ModuleShape
from .plan_backbones import BackboneSize
from .plan_sizes import TrainSize

Chosen = Mapping[str, tuple[int, ...]]  # kinds of blocks, and which blocks of each


@dataclass(frozen=True)
class Sort:
    """What is asked of a block. modules: those adapted.  reached: by the backward pass."""

    kind: str
    modules: tuple[ModuleShape, ...]
    reached: bool


def sort_blocks(size: TrainSize) -> dict[Sort, list[int]]:
    """The blocks of each sort, by their index in their kind."""
    found: dict[Sort, list[int]] = {}
    reached = False
    for kind, n in size.backbone.blocks.items():
        adapted = _adapted(size, kind)
        for block in range(n):
            modules = adapted.get(block, ())
            reached = reached or bool(modules)
            found.setdefault(Sort(kind, modules, reached), []).append(block)
    return found


def ends(sorts: Mapping[Sort, list[int]], one_more: Sort | None = None) -> Chosen:
    """The first and the last block of every sort, and the second of one of them."""
    chosen: dict[str, set[int]] = {}
    for sort, blocks in sorts.items():
        few = {blocks[0], blocks[-1], blocks[1 if sort == one_more else 0]}
        chosen.setdefault(sort.kind, set()).update(few)
    return {kind: tuple(sorted(blocks)) for kind, blocks in chosen.items()}


def only_chosen(spec: LoraSpec, backbone: BackboneSize, chosen: Chosen) -> LoraSpec:
    """The spec of a backbone that has these blocks alone, numbered anew; linears outside of them stay."""
    kinds = {f"{backbone.lists[kind]}.{{}}": blocks for kind, blocks in chosen.items()}
    bands = []
    for band in spec.bands:
        blocks = kinds.get(band.path)
        if blocks is None:
            bands.append(band)
        elif layers := tuple(blocks.index(layer) for layer in band.layers if layer in blocks):
            bands.append(replace(band, n_layers=len(layers), layers=layers))
    return replace(spec, bands=tuple(bands))


def _adapted(size: TrainSize, kind: str) -> dict[int, tuple[ModuleShape, ...]]:
    """The adapted modules of those blocks of a kind that have any."""
    path = f"{size.backbone.lists[kind]}.{{}}"
    return {layer: band.modules for band in size.spec.bands if band.path == path for layer in band.layers}
