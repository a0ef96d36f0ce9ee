"""How many positions go through a block at a time, so that a setting bounds its working memory.

Shapes: B batch, L layers of a band, P positions of a layer, D model width.

Nothing in a block mixes more than a column of layers (attention between layers) or a layer's positions
(attention within it), and the rest treats every position by itself. So a block may take any number of
columns, and any number of layers, one after the other, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .config import GeneratorConfig

# Rows that keep matrix products fast: on a CPU what stays in its caches, elsewhere what fills the device.
_ROWS_ON_CPU = 1024
_ROWS_ELSEWHERE = 8192


class Tile(NamedTuple):
    """A part of x (B, L, P, D): `x[tile]`."""

    batch: slice
    layers: slice
    places: slice


class RowBytes(NamedTuple):
    """Bytes of temporaries for each position in work, of the three things that are done with it."""

    attention: int
    feed_forward: int
    way_out: int

    @property
    def most(self) -> int:
        """Of whatever takes most."""
        return max(self)


def row_bytes(config: GeneratorConfig, itemsize: int, segment: int) -> RowBytes:
    """What a position takes while no gradient is recorded, in a dtype of that size.

    An attention holds its normalised input, queries, keys, values and what it gathered, and below float32 a
    float32 copy of the queries or the keys while they turn. The feed-forward holds its normalised input, its
    inner activation, its output and the tables by which the queries turned. The way out holds the normalised
    position and its rows' numbers, `segment` of each. A norm below float32 may take three float32 copies.
    """
    d, below = config.d_model, itemsize < 4
    norm = 3 * 4 * d if below else 0
    return RowBytes(
        max(5 * d * itemsize, 4 * d * itemsize + (4 * d if below else 0), norm),
        max((config.d_hidden + 2 * d) * itemsize + 8 * config.head_dim, norm),
        max((d + 2 * config.accumulation * segment) * itemsize, norm),
    )


def default_rows(device: torch.device) -> int:
    """Positions that are in work at a time where nobody has set a bound."""
    return _ROWS_ON_CPU if device.type == "cpu" else _ROWS_ELSEWHERE


def spans(length: int, at_once: int) -> list[slice]:
    """0 .. length in as few parts as are needed, of nearly one size."""
    n_parts = -(-length // max(1, at_once))
    size = -(-length // n_parts)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def columns(shape: torch.Size, rows: int | None) -> list[list[Tile]]:
    """Cut x (B, L, P, D) into tiles of whole columns of layers, batch by batch; None: one tile."""
    if rows is None or 0 in shape:
        return _one_tile(shape)
    batch, n_layers, n_places = shape[:3]
    everywhere = slice(0, n_layers)
    return [
        [Tile(some, everywhere, places) for places in spans(n_places, rows // n_layers)]
        for some in spans(batch, rows // (n_layers * n_places))
    ]


def whole_layers(shape: torch.Size, rows: int | None) -> list[list[Tile]]:
    """Cut x (B, L, P, D) into tiles of whole layers, batch by batch; None: one tile."""
    if rows is None or 0 in shape:
        return _one_tile(shape)
    batch, n_layers, n_places = shape[:3]
    everywhere = slice(0, n_places)
    return [
        [Tile(some, layers, everywhere) for layers in spans(n_layers, rows // n_places)]
        for some in spans(batch, rows // (n_layers * n_places))
    ]


def _one_tile(shape: torch.Size) -> list[list[Tile]]:
    return [[Tile(*(slice(0, length) for length in shape[:3]))]]


def map_tiles(x: Tensor, grid: list[list[Tile]], run: Callable[[Tensor, Tile], Tensor], dim: int) -> Tensor:
    """`run(x[tile], tile)` for every tile, joined along the batch and `dim`: a new tensor."""
    if len(grid) == 1 and len(grid[0]) == 1:
        return run(x, grid[0][0])
    rows = [torch.cat([run(x[tile], tile) for tile in row], dim) for row in grid]
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def all_tiles(grid: list[list[Tile]]) -> Iterator[Tile]:
    """The tiles of a grid, one by one."""
    for row in grid:
        yield from row
