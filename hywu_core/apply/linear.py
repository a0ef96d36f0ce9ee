"""The low-rank side path of one linear: y + scale * (x A^T) B^T, one adapter per group of rows.

Shape suffixes: M rows of the activation, P adapters, k = M / P rows per adapter, N positions of a row (any
number of axes, none for modulation vectors), r rank.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import HywuError


def low_rank_update(
    y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float = 1.0, inplace: bool = False
) -> Tensor:
    """Return `y + scale * (x A^T) B^T`.

    y (M, ..., d_out) is the linear's own output for x (M, ..., d_in); A (P, r, d_in), B (P, d_out, r). With
    P = 1 the adapter serves all rows; otherwise M = k * P and adapter p serves the k consecutive rows from
    p * k. The product is computed in y's dtype and on its device, and a zero B gives y back exactly.
    Differentiable in y, x, A and B.

    inplace: form the sum in y's memory. The products are small beside the linear's, so that a second tensor
        of y's size is most of the cost; autograd, if it records, is better off without.

    Raises `HywuError` if M is not a multiple of P.
    """
    A, B, x = A.to(y.device, y.dtype), B.to(y.device, y.dtype), x.to(y.dtype)
    adapters = A.shape[0]
    if adapters == 1:
        y_rows = y.reshape(-1, y.shape[-1])
        h = x.reshape(-1, x.shape[-1]) @ A[0].T
        add_product = y_rows.addmm_ if inplace else y_rows.addmm
        return add_product(h, B[0].T, alpha=scale).view_as(y)
    rows = x.shape[0] if x.dim() > 1 else 1
    require_shares(adapters, rows)
    y_rows = y.reshape(adapters, -1, y.shape[-1])
    h = x.reshape(adapters, -1, x.shape[-1]) @ A.mT
    add_product = y_rows.baddbmm_ if inplace else y_rows.baddbmm
    return add_product(h, B.mT, alpha=scale).view_as(y)


def require_shares(adapters: int, rows: int) -> None:
    """HywuError unless a batch of so many rows can be shared out among so many adapters."""
    if rows % adapters:
        raise HywuError(
            f"{adapters} adapters cannot be shared out over a batch of {rows} rows; "
            "the batch must be a multiple of the number of adapters."
        )
