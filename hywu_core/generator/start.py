"""What a generator computes before it first looks at a condition, kept while its weights do not change.

Shapes: L layers of a band, P positions of a layer, D model width.

The prior and the first block's attention over it are the same for every condition: a sixteenth of the work of
eight blocks, and one activation (1, L, P, D) for each band to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple
from weakref import ref

from torch import Tensor


class _Kept(NamedTuple):
    weights: tuple[tuple[ref[Tensor], int], ...]
    start: Tensor


class KeptStarts:
    """One start for each band, dropped as soon as one of the weights it was made of has been written to."""

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}

    def get(self, band: int, weights: Iterable[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """The start of a band, computed anew unless these very weights are as they were."""
        weights = tuple(weights)
        kept = self._kept.get(band)
        if kept is not None and _unchanged(kept.weights, weights) and _fits(kept.start, weights[0]):
            return kept.start
        self._kept.pop(band, None)  # before the next one is computed: there need not be room for both
        start = compute()
        if not any(
            weight.is_inference() for weight in weights
        ):  # those do not count how often they are written
            self._kept[band] = _Kept(tuple((ref(w), w._version) for w in weights), start)
        return start

    def clear(self) -> None:
        """Give the memory back."""
        self._kept.clear()

    @property
    def n_bytes(self) -> int:
        """Bytes held now."""
        return sum(kept.start.numel() * kept.start.element_size() for kept in self._kept.values())


def _unchanged(before: tuple[tuple[ref[Tensor], int], ...], now: tuple[Tensor, ...]) -> bool:
    return len(before) == len(now) and all(
        old() is weight and version == weight._version
        for (old, version), weight in zip(before, now, strict=True)
    )


def _fits(start: Tensor, weight: Tensor) -> bool:
    """Weights moved one by one, as a model is that is only partly on its device, count no writes."""
    return start.device == weight.device and start.dtype == weight.dtype
