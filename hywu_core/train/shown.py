"""Held-out edits in the middle of a run: a few numbers and a sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Shown:
    """What a task shows of itself: scalars, and rows of (caption, pictures (3, H, W) in [0, 1] by column)."""

    scalars: Mapping[str, float]
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Tensor]]]
