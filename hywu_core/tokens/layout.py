"""How an adapter's numbers are cut into parameter tokens of r x C (paper 3.4; the release's own layout)."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from math import ceil, gcd
from typing import Any, Literal, get_args

from ..errors import HywuError
from ..lora.spec import Band, LoraSpec, ModuleShape

Kind = Literal["rank_anchored", "flat"]

MAX_SEGMENT = 1024
FEW_CHANNELS = 64  # a common divisor below it is looked at again
MOST_PADDING = 1 / 8  # of an adapter's numbers, for longer tokens than the common divisor allows


@dataclass(frozen=True)
class TokenLayout:
    """The cut of every matrix into tokens of `rank x segment`.

    kind: "rank_anchored" (paper 3.4) cuts the channel axis of A and of B^T, so that row i of a token
        belongs to rank component i; "flat" (the released weights) cuts the row-major flattened matrix and
        only reshapes the runs.
    segment: C, the channels of a token. What does not divide is padded with zeros at the tail.
    """

    kind: Kind = "rank_anchored"
    segment: int = 64

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise HywuError(f"Unknown token layout {self.kind!r}; choose one of {', '.join(get_args(Kind))}.")
        if self.segment < 1:
            raise HywuError(f"The token segment is {self.segment}; it must be at least 1.")

    @classmethod
    def for_spec(
        cls, spec: LoraSpec, segment: int | None = None, kind: Kind = "rank_anchored"
    ) -> TokenLayout:
        """The layout for a spec; by default C is the largest divisor of all dims that is at most 1024.

        Where that is small because of a few odd dims, one that divides most of them, and pads the others.
        """
        return cls(kind, _segment(spec) if segment is None else segment)

    def module_tokens(self, module: ModuleShape, rank: int) -> tuple[int, int]:
        """How many tokens A and B of one module take."""
        experts = module.experts or 1
        if self.kind == "rank_anchored":
            return experts * ceil(module.d_in / self.segment), experts * ceil(module.d_out / self.segment)
        run = rank * self.segment
        return ceil(experts * rank * module.d_in / run), ceil(experts * rank * module.d_out / run)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: `TokenLayout(**data)` is its inverse."""
        return asdict(self)


def _segment(spec: LoraSpec) -> int:
    """C by default. Every token costs a generator alike, however few numbers it holds."""
    sizes: Counter[int] = Counter()
    for target in spec.targets:
        for dim in (target.d_in, target.d_out):
            sizes[dim] += target.experts or 1
    common = _largest_divisor(gcd(*sizes))
    if common >= FEW_CHANNELS:
        return common
    numbers = sum(dim * times for dim, times in sizes.items())
    found = {c for dim in sizes for c in range(common + 1, min(dim, MAX_SEGMENT) + 1) if dim % c == 0}
    padding = {c: sum(-dim % c * times for dim, times in sizes.items()) for c in found}
    return max((c for c in found if padding[c] <= MOST_PADDING * numbers), default=common)


def _largest_divisor(number: int) -> int:
    """The largest divisor that is at most MAX_SEGMENT."""
    return next(c for c in range(min(number, MAX_SEGMENT), 0, -1) if number % c == 0)


def n_tokens(band: Band, layout: TokenLayout, rank: int) -> tuple[int, int]:
    """(T_A, T_B): how many A-tokens and B-tokens a layer of the band has."""
    counts = [layout.module_tokens(module, rank) for module in band.modules]
    return sum(a for a, _ in counts), sum(b for _, b in counts)
