"""A batch of low-rank updates: one (A, B) pair per target, beside one scale and a provenance.

Shape suffixes: P adapters in the batch, E experts, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from numbers import Integral
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import HywuError
from .spec import LoraSpec

Pair = tuple[Tensor, Tensor]


class Adapter(Mapping[str, Pair]):
    """Reads as a mapping from target name to `(A, B)`.

    A (P, [E,] r, d_in) and B (P, [E,] d_out, r) are unscaled; adapter p updates the target's weight by
    `scale * B[p] @ A[p]`. All targets share P and r, and should share dtype and device. Tensors may be
    views and may require grad.

    `provenance` says where the batch comes from, `rows` what is known of each adapter in it besides (such as
    `condition_sha256` and `prompt`): P mappings, or none where nothing is known.

    Raises `HywuError` if the shapes contradict each other; `check()` also looks for values that are not
    finite.
    """

    def __init__(
        self,
        weights: Mapping[str, Pair],
        scale: float = 1.0,
        provenance: Mapping[str, str] | None = None,
        rows: Sequence[Mapping[str, str]] = (),
    ) -> None:
        if not weights:
            raise HywuError("An adapter needs at least one target; this one has none.")
        self._weights: dict[str, Pair] = {name: (A, B) for name, (A, B) in weights.items()}
        self.scale = float(scale)
        self.provenance: Mapping[str, str] = MappingProxyType(dict(provenance or {}))
        self.rows: tuple[Mapping[str, str], ...] = tuple(MappingProxyType(dict(row)) for row in rows)
        if self.rows and len(self.rows) != self.batch:
            raise HywuError(f"{len(self.rows)} origins were given for a batch of {self.batch} adapters.")
        self._check_consistent()

    def __getitem__(self, name: str) -> Pair:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    # By identity: Mapping would compare tensors, which have no single truth value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return (
            f"Adapter(batch={self.batch}, targets={len(self)}, rank={self.rank}, scale={self.scale:g}, "
            f"dtype={self.dtype}, device={self.device})"
        )

    @property
    def _any(self) -> Tensor:
        return next(iter(self._weights.values()))[0]

    @property
    def batch(self) -> int:
        """How many adapters this is."""
        return self._any.shape[0]

    @property
    def rank(self) -> int:
        """The rank r all targets share."""
        return self._any.shape[-2]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._any.device

    @property
    def dtype(self) -> torch.dtype:
        """The tensors' dtype."""
        return self._any.dtype

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient can flow into any of the tensors."""
        return any(A.requires_grad or B.requires_grad for A, B in self.values())

    @property
    def n_parameters(self) -> int:
        """How many numbers one adapter of the batch has."""
        return sum(A[0].numel() + B[0].numel() for A, B in self.values())

    def map(self, function: Callable[[Tensor], Tensor]) -> Adapter:
        """The adapter with `function` applied to every A and B."""
        return self.with_weights({name: (function(A), function(B)) for name, (A, B) in self.items()})

    def with_weights(self, weights: Mapping[str, Pair], scale: float | None = None) -> Adapter:
        """Other tensors (and another scale) for the same batch: where they come from stays known."""
        return Adapter(weights, self.scale if scale is None else scale, self.provenance, self.rows)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Adapter:
        """Move and cast; tensors that already fit are shared, not copied."""
        return self.map(lambda t: t.to(device=device or t.device, dtype=dtype or t.dtype))

    def cpu(self) -> Adapter:
        """The adapter in main memory."""
        return self.to(device="cpu")

    def detach(self) -> Adapter:
        """The same values, cut off from autograd."""
        return self.map(torch.Tensor.detach)

    def clone(self) -> Adapter:
        """A copy that shares no memory."""
        return self.map(torch.Tensor.clone)

    def select(self, index: int | slice | Sequence[int]) -> Adapter:
        """Some adapters of the batch; the batch axis stays, also for a single index.

        Raises `HywuError` for an index outside the batch.
        """
        available = range(self.batch)
        try:
            if isinstance(index, slice):
                rows = list(available[index])
            else:
                rows = [available[i] for i in ([index] if isinstance(index, Integral) else index)]
        except IndexError:
            raise HywuError(f"Adapter {index} was asked for, but the batch has only {self.batch}.") from None
        if not rows:
            raise HywuError(f"An empty selection was asked for, {index} of {self.batch} adapters.")
        first, end = rows[0], rows[-1] + 1
        # Neighbours are a view.
        chosen = slice(first, end) if rows == list(range(first, end)) else rows
        weights = {name: (A[chosen], B[chosen]) for name, (A, B) in self.items()}
        return Adapter(
            weights, self.scale, self.provenance, [self.rows[i] for i in rows] if self.rows else ()
        )

    def scaled(self, factor: float) -> Adapter:
        """The update times `factor`; the tensors are shared."""
        return self.with_weights(self._weights, self.scale * factor)

    @staticmethod
    def stack(adapters: Sequence[Adapter]) -> Adapter:
        """Join several adapters, in order, into one whose batch is the sum of theirs.

        Where scales differ, the largest one stays and the others are folded into B. Provenance keeps what all
        agree on, and each adapter its own row. Raises `HywuError` if targets or shapes differ.
        """
        if not adapters:
            raise HywuError("Nothing to stack: the list of adapters is empty.")
        first = adapters[0]
        for other in adapters[1:]:
            require_same_targets(first, other)
        scale, factors = ratios_to_largest([a.scale for a in adapters])
        weights = {
            name: (
                torch.cat([a[name][0] for a in adapters]),
                torch.cat(
                    [a[name][1] if f == 1 else a[name][1] * f for a, f in zip(adapters, factors, strict=True)]
                ),
            )
            for name in first
        }
        shared = agreed([a.provenance for a in adapters])
        rows = [row for a in adapters for row in a.rows or ({},) * a.batch]
        return Adapter(weights, scale, shared, rows if any(rows) else ())

    def check(self, spec: LoraSpec | None = None) -> Adapter:
        """Return self if every value is finite and, with a spec, if targets, shapes and rank are the spec's.

        Raises `HywuError` naming the first tensor that is not.
        """
        if spec is not None:
            self.check_shapes(spec)
        if not isfinite(self.scale):
            raise HywuError(f"The adapter's scale is {self.scale}; it must be finite.")
        # One synchronisation for all tensors; which one it is matters only when something is wrong.
        finite = torch.stack([torch.isfinite(t).all() for pair in self.values() for t in pair])
        if not bool(finite.all()):
            number = int((~finite).nonzero()[0])
            name = list(self)[number // 2]
            raise HywuError(
                f"The adapter has NaN or infinite values in {'AB'[number % 2]} of {name!r}; do not use it."
            )
        return self

    def _check_consistent(self) -> None:
        batch, rank = self.batch, self.rank
        for name, (A, B) in self.items():
            fits = (
                A.dim() == B.dim()
                and A.dim() in (3, 4)
                and A.shape[:-2] == B.shape[:-2]
                and A.shape[0] == batch
                and A.shape[-2] == B.shape[-1] == rank
            )
            if not fits:
                raise HywuError(
                    f"Target {name!r} has A {tuple(A.shape)} and B {tuple(B.shape)}; expected "
                    f"A ({batch}, [experts,] {rank}, d_in) and B ({batch}, [experts,] d_out, {rank}) as in "
                    "the first target."
                )

    def check_shapes(self, spec: LoraSpec) -> None:
        """Raise `HywuError` unless targets, shapes and rank are the spec's."""
        if self.rank != spec.rank:
            raise HywuError(f"The adapter has rank {self.rank}, but the spec says {spec.rank}.")
        wanted = {target.name: target for target in spec.targets}
        if wanted.keys() != self.keys():
            missing, extra = wanted.keys() - self.keys(), self.keys() - wanted.keys()
            raise HywuError(
                f"The adapter's {len(self)} targets are not the spec's {len(wanted)}: {len(missing)} are "
                f"missing and {len(extra)} unknown, such as {min(missing or extra)!r}."
            )
        for name, target in wanted.items():
            dims, wanted_dims = dims_of(self[name]), (target.d_in, target.d_out, target.experts)
            if dims != wanted_dims:
                raise HywuError(
                    f"Target {name!r} has (d_in, d_out, experts) {dims} in the adapter, but {wanted_dims} in "
                    "the spec."
                )


def require_same_targets(first: Adapter, other: Adapter) -> None:
    """Raise `HywuError` unless both adapters have the same targets and, apart from the batch, shapes."""
    if first.keys() != other.keys():
        difference = first.keys() ^ other.keys()
        raise HywuError(
            f"These adapters do not belong to the same model: {len(difference)} targets are in only one of "
            f"them, such as {min(difference)!r}."
        )
    if first.rank != other.rank:
        raise HywuError(f"These adapters have different ranks, {first.rank} and {other.rank}.")
    for name in first:
        dims, other_dims = dims_of(first[name]), dims_of(other[name])
        if dims != other_dims:
            raise HywuError(
                f"Target {name!r} has (d_in, d_out, experts) {dims} in one adapter and {other_dims} in "
                "the other."
            )


def dims_of(pair: Pair) -> tuple[int, int, int | None]:
    """(d_in, d_out, experts) of a target."""
    A, B = pair
    return A.shape[-1], B.shape[-2], A.shape[1] if A.dim() == 4 else None


def ratios_to_largest(factors: Sequence[float]) -> tuple[float, list[float]]:
    """The factor of the largest size, and what each is of it: at most 1, so that no tensor overflows."""
    largest = max(factors, key=abs)
    return largest, [factor / largest if largest else 1.0 for factor in factors]


def agreed(told: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The entries that all of several origins have in common."""
    return {k: v for k, v in told[0].items() if all(other.get(k) == v for other in told)}
