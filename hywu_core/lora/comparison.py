"""How two adapters differ: the norms of the difference of their updates, and the angle between them.

The norm of a difference says more than the difference of norms: two updates can be equally strong and have
nothing in common. No update is ever formed: with `U = s B A`, the inner product of two is
`<U, V> = s t tr(A^T B^T D C) = s t sum((B^T D) * (A C^T))`, a sum over r x r' numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import torch

from ..errors import HywuError
from .adapter import Adapter, Pair
from .norm_table import NormTable, arrange

_CANCELLED = 1e-12  # of the terms of a sum in doubles: below it, the sum is their rounding
_NOISE = 1e-6  # of the norms: below it, a float32 update and its copy are the same


@dataclass(frozen=True)
class Comparison:
    """Two adapters against each other.

    difference: the norms of second - first; a target that one of them lacks counts as zero in it.
    cosine: of the angle between the whole updates; None if one of them is zero.
    shared, only_first, only_second: numbers of targets.
    """

    difference: NormTable
    cosine: float | None
    shared: int
    only_first: int
    only_second: int


@torch.no_grad()
def compare(first: Adapter, second: Adapter, index: int = 0, other_index: int = 0) -> Comparison:
    """Compare adapter `index` of the first batch with adapter `other_index` of the second; ranks may differ.

    Raises `HywuError` for an index outside a batch, if a target has other shapes in each, and if no target
    is in both.
    """
    # In main memory and in doubles: what two large norms leave of each other is small, and an accelerator
    # need not know doubles.
    a, b = (_in_doubles(adapter.select(i)) for adapter, i in ((first, index), (second, other_index)))
    if not a.keys() & b.keys():
        raise HywuError(
            f"These adapters have no target in common ({next(iter(a))!r} is one of the first, "
            f"{next(iter(b))!r} of the second): they were made for different models."
        )
    differences: dict[str, float] = {}
    total_a = total_b = total_ab = 0.0
    for name in [*a, *(name for name in b if name not in a)]:
        aa = _inner(name, a, a) if name in a else 0.0
        bb = _inner(name, b, b) if name in b else 0.0
        ab = _inner(name, a, b) if name in a and name in b else 0.0
        distance = sqrt(max(aa + bb - 2 * ab, 0.0))
        differences[name] = 0.0 if distance < _NOISE * sqrt(aa + bb) else distance
        total_a, total_b, total_ab = total_a + aa, total_b + bb, total_ab + ab
    shared = len(a.keys() & b.keys())
    # A cosine of 1.0000000002 would be rounding.
    cosine = max(-1.0, min(1.0, total_ab / sqrt(total_a * total_b))) if total_a and total_b else None
    difference = arrange(differences, "difference")
    return Comparison(difference, cosine, shared, len(a) - shared, len(b) - shared)


def _in_doubles(adapter: Adapter) -> dict[str, Pair]:
    """The factors of the one adapter of a batch, its scale in B; without experts, as if there were one."""
    return {
        name: (_matrices(A), _matrices(B) * adapter.scale)
        for name, (A, B) in adapter.cpu().to(dtype=torch.float64).items()
    }


def _matrices(factor: torch.Tensor) -> torch.Tensor:
    return factor[0] if factor.dim() == 4 else factor


def _inner(name: str, first: Mapping[str, Pair], second: Mapping[str, Pair]) -> float:
    """The inner product of two updates of one target; experts add up."""
    (A, B), (C, D) = first[name], second[name]
    if A.shape[-1] != C.shape[-1] or B.shape[-2] != D.shape[-2] or len(A) != len(C):
        raise HywuError(
            f"These adapters do not belong to the same model: target {name!r} is {A.shape[-1]} -> "
            f"{B.shape[-2]} with {len(A)} expert(s) in one and {C.shape[-1]} -> {D.shape[-2]} with {len(C)} "
            "in the other."
        )
    products = (B.mT @ D) * (A @ C.mT)
    inner = float(products.sum())
    # What is left of products that cancel, of a LoRA less itself say, is rounding of either sign.
    return 0.0 if abs(inner) < _CANCELLED * float(products.abs().sum()) else inner
