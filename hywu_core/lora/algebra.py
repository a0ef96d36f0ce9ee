"""Arithmetic on the updates themselves, scale * B @ A, without ever forming a d_out x d_in matrix.

Sums are exact but for one rounding to the tensors' dtype: the ranks of the summands are concatenated,
[B1 B2] @ [A1; A2] = B1 @ A1 + B2 @ A2, and `truncate_rank` brings the rank down again with the best
approximation there is (Eckart-Young). Everything is batched over the P adapters; r is the rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import HywuError
from .adapter import Adapter, Pair, agreed, dims_of, ratios_to_largest


@dataclass(frozen=True, eq=False)
class ClipReport:
    """What `clip_norm` did: norms before and factors per target, both (P,), and the total norms (P,)."""

    norms: Mapping[str, Tensor]
    factors: Mapping[str, Tensor]
    total_before: Tensor
    total_after: Tensor

    @property
    def n_clipped(self) -> int:
        """How many (adapter, target) pairs were made smaller."""
        return int(sum((factor < 1).sum() for factor in self.factors.values()))

    def describe(self) -> str:
        """One sentence for people."""
        pairs = sum(factor.numel() for factor in self.factors.values())
        return (
            f"clipped {self.n_clipped} of {pairs} updates; largest total norm "
            f"{float(self.total_before.max()):.4g} -> {float(self.total_after.max()):.4g}"
        )


def square_norms(adapter: Adapter) -> dict[str, Tensor]:
    """Squared Frobenius norm of every target's update `scale * B @ A`, (P,) float32; experts count together.

    ||B A||^2 = tr(A^T B^T B A) = <B^T B, A A^T>: two r x r Gram matrices. Differentiable.
    """
    result = {}
    for name, (A, B) in adapter.items():
        A, B = A.float(), B.float()
        squares = ((B.mT @ B) * (A @ A.mT)).flatten(1).sum(1)
        result[name] = squares.clamp_min(0) * adapter.scale**2
    return result


def norms(adapter: Adapter) -> dict[str, Tensor]:
    """Frobenius norm of every target's update, (P,) float32; as `square_norms`, not differentiable at 0."""
    return {name: square.sqrt() for name, square in square_norms(adapter).items()}


def total_norm(adapter: Adapter) -> Tensor:
    """Frobenius norm of the whole update, all targets together, (P,) float32."""
    return _whole(norms(adapter))


def clip_norm(
    adapter: Adapter, per_target: float | None = None, total: float | None = None
) -> tuple[Adapter, ClipReport]:
    """Bound the update: each target's norm by `per_target` first, then the whole update's by `total`.

    The bounds hold for what comes out, in its dtype. What is within them keeps its tensors. As in gradient
    clipping, the factors are constants to autograd. Raises `HywuError` for a bound that is not positive.
    """
    for limit in (per_target, total):
        if limit is not None and not limit > 0:
            raise HywuError(f"The norm bound is {limit}; it must be positive.")
    found = norms(adapter.detach())
    factors = {name: torch.ones_like(norm) for name, norm in found.items()}
    clipped, after, slack = adapter, found, 0.0
    # Rounding can make it larger again. More is taken off each time, in the end all: it is done soon.
    while (shrink := _shrink(after, per_target, total, slack)) is not None:
        factors = {name: factor * shrink[name] for name, factor in factors.items()}
        clipped = _times(adapter, factors)
        after = norms(clipped.detach())
        slack = 2 * slack or max(torch.finfo(dtype).eps for dtype in (adapter.dtype, torch.float32))
    return clipped, ClipReport(found, factors, _whole(found), _whole(after))


def _shrink(
    found: Mapping[str, Tensor], per_target: float | None, total: float | None, slack: float
) -> dict[str, Tensor] | None:
    """What each target must be multiplied by to be within its bounds by this much; None if all are."""
    per_target, total = (float("inf") if limit is None else limit for limit in (per_target, total))
    keep = max(1 - slack, 0.0)
    shrink = {
        name: torch.where(norm > per_target, keep * per_target / norm, 1) for name, norm in found.items()
    }
    whole = _whole({name: norm * shrink[name] for name, norm in found.items()})
    overall = torch.where(whole > total, keep * total / whole, 1)
    shrink = {name: factor * overall for name, factor in shrink.items()}
    return shrink if bool((torch.stack(list(shrink.values())) < 1).any()) else None


def _times(adapter: Adapter, factors: Mapping[str, Tensor]) -> Adapter:
    """Each target's B times its factors (P,), rounded once; what they leave alone keeps its tensors."""
    smaller = (torch.stack(list(factors.values())) < 1).any(dim=1).tolist()  # one synchronisation for all
    weights = {}
    for (name, (A, B)), changed in zip(adapter.items(), smaller, strict=True):
        if changed:
            exact = B.to(torch.promote_types(B.dtype, torch.float32))
            B = (exact * factors[name].view(-1, *[1] * (B.dim() - 1))).to(B.dtype)
        weights[name] = A, B
    return adapter.with_weights(weights)


def _whole(found: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(found.values())).norm(dim=0)


def combine(adapters: Sequence[Adapter], weights: Sequence[float], rank: int | None = None) -> Adapter:
    """The weighted sum of updates: with the sum of their ranks, or the best of at most `rank`.

    A batch of 1 goes with every adapter of a larger batch. A target that an adapter lacks counts as one it
    leaves alone. The largest factor becomes the scale, so that the others make no number larger; the
    provenance all agree on is kept. Raises `HywuError` if shapes of a target or batches differ.
    """
    if not adapters or len(adapters) != len(weights):
        raise HywuError(f"{len(adapters)} adapters and {len(weights)} weights do not make a weighted sum.")
    batch = _common_batch(adapters)
    dtype = _common_dtype(adapters)
    device = adapters[0].device
    scale, ratios = ratios_to_largest(
        [weight * adapter.scale for weight, adapter in zip(weights, adapters, strict=True)]
    )
    precise = torch.promote_types(dtype, torch.float32)
    pairs: dict[str, Pair] = {}
    for name, summands in _by_target(adapters).items():
        A, B = [], []
        for i in summands:
            one_A, one_B = (_spread(t.to(device, precise), batch) for t in adapters[i][name])
            A.append(one_A)
            B.append(one_B * ratios[i])
        both = _at_most(torch.cat(A, dim=-2), torch.cat(B, dim=-1), rank)
        pairs[name] = both[0].to(dtype), both[1].to(dtype)
    rows = [agreed([_row(adapter, i) for adapter in adapters]) for i in range(batch)]
    provenance = agreed([adapter.provenance for adapter in adapters])
    return Adapter(_of_one_rank(pairs), scale, provenance, rows if any(rows) else ())


def interpolate(first: Adapter, second: Adapter, t: float, rank: int | None = None) -> Adapter:
    """The update (1 - t) * first + t * second, see `combine`; t outside [0, 1] extrapolates."""
    return combine([first, second], [1 - t, t], rank)


def average(adapter: Adapter, rank: int | None = None) -> Adapter:
    """The mean update of the batch, as an adapter of batch 1 (the paper's "Average PG", section 5.3).

    The mean of updates is not the product of mean factors. Exact with rank P * r; `rank` truncates target
    by target, so that a long batch needs little memory.
    """
    pairs = {}
    for name, (A, B) in adapter.items():
        A_joined = A.movedim(0, -3).flatten(-3, -2)[None]
        B_joined = B.movedim(0, -2).flatten(-2)[None]
        pairs[name] = (A_joined, B_joined) if rank is None else _truncate(A_joined, B_joined, rank)
    row = agreed(adapter.rows) if adapter.rows else {}
    return Adapter(pairs, adapter.scale / adapter.batch, adapter.provenance, [row] if row else ())


def join(adapters: Sequence[Adapter]) -> Adapter:
    """All adapters in one batch, in order, as `Adapter.stack`: smaller ranks and missing targets are zeros.

    Raises `HywuError` if a target has other shapes in another adapter.
    """
    dtype = _common_dtype(adapters)
    device = adapters[0].device
    rank = max(adapter.rank for adapter in adapters)
    joined = []
    for adapter in adapters:
        pairs = {}
        for name, owners in _by_target(adapters).items():
            if name in adapter:
                A, B = (t.to(device, dtype) for t in adapter[name])
            else:
                like_A, like_B = adapters[owners[0]][name]
                A, B = (
                    t.new_zeros((adapter.batch, *t.shape[1:]), device=device, dtype=dtype)
                    for t in (like_A, like_B)
                )
            pairs[name] = pad_pair(A, B, max(rank, A.shape[-2]))
        joined.append(adapter.with_weights(pairs))
    return Adapter.stack(joined)


def _row(adapter: Adapter, i: int) -> Mapping[str, str]:
    """What is known of adapter i, or of the only one."""
    return adapter.rows[i if adapter.batch > 1 else 0] if adapter.rows else {}


def _by_target(adapters: Sequence[Adapter]) -> dict[str, list[int]]:
    """Every target of any adapter -> the adapters that have it; their shapes must be the same."""
    owners: dict[str, list[int]] = {}
    for i, adapter in enumerate(adapters):
        for name, pair in adapter.items():
            known = owners.setdefault(name, [])
            if known and dims_of(pair) != dims_of(adapters[known[0]][name]):
                shapes = f"{dims_of(adapters[known[0]][name])} in one and {dims_of(pair)} in the other"
                raise HywuError(
                    f"These adapters do not belong to the same model: target {name!r} has (d_in, d_out, "
                    f"experts) {shapes}."
                )
            known.append(i)
    return owners


def _common_batch(adapters: Sequence[Adapter]) -> int:
    batches = sorted({adapter.batch for adapter in adapters} - {1}) or [1]
    if len(batches) > 1:
        raise HywuError(
            f"Batches of {batches[0]} and {batches[1]} LoRAs cannot be added: they must be equal, or one of "
            "them a single LoRA."
        )
    return batches[0]


def _common_dtype(adapters: Sequence[Adapter]) -> torch.dtype:
    return reduce(torch.promote_types, (adapter.dtype for adapter in adapters))


def _spread(tensor: Tensor, batch: int) -> Tensor:
    return tensor.expand(batch, *tensor.shape[1:])


def _of_one_rank(pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    """Targets that fewer adapters have are of smaller rank until zeros fill it."""
    rank = max(A.shape[-2] for A, _ in pairs.values())
    return {name: pad_pair(A, B, rank) for name, (A, B) in pairs.items()}


def _at_most(A: Tensor, B: Tensor, rank: int | None) -> Pair:
    return (A, B) if rank is None else _truncate(A, B, min(rank, A.shape[-2]))


def truncate_rank(adapter: Adapter, rank: int) -> Adapter:
    """The nearest adapter of rank at most `rank` in Frobenius norm; zero-padded to exactly `rank`.

    Raises `HywuError` for a rank below 1.
    """
    return adapter.with_weights({name: _truncate(A, B, rank) for name, (A, B) in adapter.items()})


def _truncate(A: Tensor, B: Tensor, rank: int) -> Pair:
    """Singular value decomposition of B @ A through QR of the factors: only r x r matrices are decomposed."""
    if rank < 1:
        raise HywuError(f"The rank to truncate to is {rank}; it must be at least 1.")
    if rank >= A.shape[-2]:
        return pad_pair(A, B, rank)
    Q_B, R_B = torch.linalg.qr(B.float())
    Q_A, R_A = torch.linalg.qr(A.float().mT)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    root = S[..., :rank].sqrt()
    new_B = (Q_B @ U[..., :rank]) * root[..., None, :]
    new_A = (root[..., :, None] * Vh[..., :rank, :]) @ Q_A.mT
    return pad_pair(new_A.to(A.dtype), new_B.to(B.dtype), rank)


def pad_pair(A: Tensor, B: Tensor, rank: int) -> Pair:
    """Raise the rank of one pair to `rank` with zeros; the update stays what it is."""
    missing = rank - A.shape[-2]
    return (F.pad(A, (0, 0, 0, missing)), F.pad(B, (0, missing))) if missing else (A, B)
