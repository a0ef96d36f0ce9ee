"""Rotary position embeddings on the layer, token and rank indices (paper 3.5).

Shapes: G groups, N positions, H heads, E channels of a head.

Every axis of an index owns an equal, consecutive share of a head's channels. Channels (2i, 2i + 1) of a share
of width w turn by index * theta ** (-2i / w): the interleaved pairs of RoFormer, one rotation per axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Condition lengths may differ from call to call; a table is only worth keeping while its shape recurs.
_MAX_TABLES = 64

# Where torch multiplies complex numbers; elsewhere, and in compiled code, pairs of real ones do the same.
_COMPLEX_DEVICES = ("cpu", "cuda")


class Rotation(NamedTuple):
    """Tables (N, 1, E), the 1 for the heads; float32, as bfloat16 confuses neighbouring indices beyond 256.

    cos repeats each cosine, sin each sine with a minus first: (x, y) turns to (x, y) * cos + (y, x) * sin.
    Real numbers, because complex ones do not compile and not every device has them.
    """

    cos: Tensor
    sin: Tensor


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the channel pairs of x (G, N, H, E) by their positions' angles; x's dtype, computed in float32."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    swapped = torch.stack([second, first], dim=-1).flatten(-2)
    return torch.addcmul(x * rotation.cos, swapped, rotation.sin).to(x.dtype)


def rotate_(x: Tensor, rotation: Rotation) -> Tensor:
    """`rotate` in place, for where no gradient is recorded; complex numbers need one pass over memory."""
    if x.device.type not in _COMPLEX_DEVICES or torch.compiler.is_compiling():
        return x.copy_(rotate(x, rotation))
    turns = torch.complex(rotation.cos[..., 0::2], rotation.sin[..., 1::2])
    # Of a joint projection one half at a time, because below float32 each needs a copy.
    for part in [x] if x.dtype == torch.float32 else x.chunk(2, dim=2):
        turned = part.float()
        torch.view_as_complex(turned.unflatten(-1, (-1, 2))).mul_(turns)
        if turned is not part:
            part.copy_(turned)
        del turned  # before the next one
    return x


def rotation_of(indices: Sequence[Tensor], head_dim: int, theta: float) -> Rotation:
    """Rotation of N positions from one index tensor (N,) per axis."""
    width = head_dim // len(indices)
    exponents = torch.arange(0, width, 2, device=indices[0].device) / width
    frequencies = 1.0 / theta**exponents
    angles = torch.cat([index[:, None] * frequencies for index in indices], dim=1)
    cos, sin = angles.cos(), angles.sin()
    return Rotation(
        cos=torch.stack([cos, cos], dim=-1).flatten(-2)[:, None],
        sin=torch.stack([-sin, sin], dim=-1).flatten(-2)[:, None],
    )


class QueryRotation(NamedTuple):
    """Rotation of L * P positions by layer and by place within it, kept as its two axes.

    In full it would be 180 MB for the released generator; a part is put together when it is needed.
    """

    layer: Rotation  # (L, 1, E / 2)
    place: Rotation  # (P, 1, E / 2)

    def part(self, layers: slice, places: slice) -> Rotation:
        """Tables (l * p, 1, E) of these layers and, in each of them, these places."""

        def joined(layer: Tensor, place: Tensor) -> Tensor:
            layer, place = layer[layers, None], place[None, places]
            shape = (layer.shape[0], place.shape[1], -1, -1)
            return torch.cat([layer.expand(shape), place.expand(shape)], dim=-1).flatten(0, 1)

        return Rotation(*(joined(*tables) for tables in zip(self.layer, self.place, strict=True)))


class BandRotations(NamedTuple):
    """Where the positions of one band are, as each of the three attentions sees it."""

    layer: Rotation  # L positions: the layer
    token: Rotation  # P positions: token and rank
    query: QueryRotation  # L * P positions: layer, and place within the layer
    key: Rotation  # S positions: a diagonal that starts beyond every token and rank index

    def of_layers(self, own: Callable[[Rotation], Rotation]) -> BandRotations:
        """With queries from some of the layers only: those that `own` leaves of a table of layers."""
        return self._replace(query=self.query._replace(layer=own(self.query.layer)))


class RotaryTables:
    """Rotations computed once per shape and device; they belong to a generator and leave memory with it."""

    def __init__(self, head_dim: int, theta: float) -> None:
        self.head_dim = head_dim
        self.theta = theta
        self._tables: dict[tuple[object, ...], Rotation] = {}

    def band(self, grid: tuple[int, int, int], n_condition: int, device: torch.device) -> BandRotations:
        """Rotations of a band's grid (L layers, T tokens, r / a rank groups) against S condition tokens."""
        n_layers, n_tokens, n_ranks = grid
        return BandRotations(
            layer=self._grid((n_layers,), self.head_dim, device),
            token=self._grid((n_tokens, n_ranks), self.head_dim, device),
            query=QueryRotation(
                self._grid((n_layers,), self.head_dim // 2, device),
                self._grid((n_tokens * n_ranks,), self.head_dim // 2, device),
            ),
            key=self._diagonal(n_condition, max(n_tokens, n_ranks), device),
        )

    def clear(self) -> None:
        """Forget every table; they are computed again when needed."""
        self._tables.clear()

    def _grid(self, lengths: tuple[int, ...], width: int, device: torch.device) -> Rotation:
        """Row-major grid, one axis for each of its lengths, on `width` channels of a head."""

        def indices() -> Sequence[Tensor]:
            axes = torch.meshgrid(*(torch.arange(n, device=device) for n in lengths), indexing="ij")
            return [axis.flatten() for axis in axes]

        return self._get(("grid", lengths, width, device), indices, width)

    def _diagonal(self, length: int, offset: int, device: torch.device) -> Rotation:
        """(offset, offset), (offset + 1, offset + 1), ... on two axes."""

        def indices() -> Sequence[Tensor]:
            return [torch.arange(offset, offset + length, device=device)] * 2

        return self._get(("diagonal", length, offset, device), indices, self.head_dim)

    def _get(self, key: tuple[object, ...], indices: Callable[[], Sequence[Tensor]], width: int) -> Rotation:
        if key not in self._tables:
            if len(self._tables) >= _MAX_TABLES:
                self.clear()
            with torch.inference_mode(False):  # a table first made during inference must still serve training
                self._tables[key] = rotation_of(indices(), width, self.theta)
        return self._tables[key]
