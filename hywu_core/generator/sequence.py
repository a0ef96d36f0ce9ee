"""Where a band's positions are while several generators write one adapter together; alone: all of them here.

Shapes: B batch, L layers of a band, P positions of a layer, D model width; l, p are a part of L, P.

A block mixes positions along one axis at a time, so the other axis can be divided: whole columns of layers
for the attention between layers, whole layers for all that follows. A generator names the places where one
kind of part has to become the other; who divides (see `hywu_core.train.sequence`) says how.
"""

from __future__ import annotations

from torch import Tensor

from .positions import Rotation


class Sequence:
    """Nothing is divided: every part is the whole."""

    def enter(self, x: Tensor) -> Tensor:
        """Of x (B, L, P, D) the columns (B, L, p, D) that are worked on here."""
        return x

    def to_layers(self, x: Tensor, n_places: int) -> Tensor:
        """Columns (B, L, p, D) to whole layers (B, l, P, D); n_places is P."""
        return x

    def to_columns(self, x: Tensor, n_layers: int) -> Tensor:
        """Whole layers (B, l, P, D) to columns (B, L, p, D); n_layers is L."""
        return x

    def own_layers(self, table: Rotation) -> Rotation:
        """Of the rotations of L layers those of the l layers that `to_layers` gives."""
        return table

    def leave(self, tokens: Tensor, n_layers: int) -> Tensor:
        """Of tokens (B, l, ...) of these layers to those of all, (B, L, ...)."""
        return tokens


WHOLE = Sequence()
