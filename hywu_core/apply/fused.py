"""The low-rank side path of a linear or convolution that several targets share, added in place to its output.

A runtime may fuse what the adapter knows as separate targets: FLUX's to_q, to_k, to_v and proj_mlp are row
slices of one linear in ComfyUI. All of them read the same input, so one product with the stacked A serves
them, and each B adds to the rows it owns, without a copy of the output.

Shapes: M rows of a call, P adapters, r rank of a target, R = sum of the ranks of a linear's targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import HywuError
from .rows import Spans


class Up(NamedTuple):
    """The second half of one target's update.

    B: transposed, (P, r, d) or (r, d) for a single adapter; it holds scale and strength already.
    ranks, rows: where in the R ranks and in the output rows it belongs; None if that is all of them.
    """

    B: Tensor
    ranks: tuple[int, int] | None
    rows: tuple[int, int] | None


class Convolution(NamedTuple):
    """How a convolution reads its input; the two products of its update are a convolution and a 1x1 one."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]


class Update(NamedTuple):
    """The update of one linear or convolution by one batch of adapters.

    A: transposed, (P, d_in, R) or (d_in, R) for a single adapter.
    spans: the rows of the call it is for.
    """

    A: Tensor
    ups: tuple[Up, ...]
    spans: Spans


def add_updates(
    y: Tensor, x: Tensor, updates: Sequence[Update], rows: int, convolution: Convolution | None = None
) -> Tensor:
    """Add every update for the input x to the output y and return y.

    x (M, ..., d_in) and y (M, ..., d_out), of a convolution (M, d, ...); also x (2 M, d_in) with
    y (2 M, d_out), and any leading axis if one adapter serves every row.  rows: M.

    Raises `HywuError` for any other leading axis.
    """
    if not y.is_contiguous():  # a linear's output is; the views below must not be copies
        y = y.contiguous()
    add = _add if convolution is None else _add_convolution
    for A, ups, spans in updates:
        if A.dtype != y.dtype:
            A, ups = A.to(y.dtype), tuple(up._replace(B=up.B.to(y.dtype)) for up in ups)
        if spans is None:
            add(y, x, A, ups, convolution)
            continue
        length = x.shape[0]
        # Any other would be positions folded into the rows, whose order only the model knows.
        if length != rows and (length != 2 * rows or x.dim() != 2):
            raise HywuError(
                f"A layer of this model sees {length} rows where the call has {rows}, so that nobody can "
                "tell which LoRA is whose; use a single LoRA for all images, in both branches."
            )
        for start in range(0, length, rows):
            for first, end in spans:
                mine = slice(start + first, start + end)
                add(y[mine], x[mine], A, ups, convolution)
    return y


def _add(y: Tensor, x: Tensor, A: Tensor, ups: Sequence[Up], _: None) -> None:
    """x (p, ..., d_in) into y (p, ..., d_out), a view of the output; P = p or 1."""
    if x.dtype != A.dtype:
        x = x.to(A.dtype)
    if A.dim() == 2:
        y, h = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]) @ A
        for B, ranks, rows in ups:
            part = h if ranks is None else h[:, ranks[0] : ranks[1]]
            (y if rows is None else y[:, rows[0] : rows[1]]).addmm_(part, B)
        return
    adapters = A.shape[0]
    y, h = y.view(adapters, -1, y.shape[-1]), torch.bmm(x.reshape(adapters, -1, x.shape[-1]), A)
    for B, ranks, rows in ups:
        part = h if ranks is None else h[..., ranks[0] : ranks[1]]
        (y if rows is None else y[..., rows[0] : rows[1]]).baddbmm_(part, B)


def _add_convolution(y: Tensor, x: Tensor, A: Tensor, ups: Sequence[Up], how: Convolution) -> None:
    """x (p, c_in, ...) into y (p, c_out, ...); the rows of A are flattened kernels of (c_in, *kernel)."""
    if x.dtype != A.dtype:
        x = x.to(A.dtype)
    if A.dim() == 3:
        for number, one in enumerate(A):
            own = slice(number, number + 1)
            _add_convolution(y[own], x[own], one, [up._replace(B=up.B[number]) for up in ups], how)
        return
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(how.kernel) - 1]
    kernels = A.t().reshape(-1, x.shape[1], *how.kernel)
    h = convolve(x, kernels, None, how.stride, how.padding, how.dilation).flatten(2)
    y = y.view(*y.shape[:2], -1)
    for B, ranks, rows in ups:
        part = h if ranks is None else h[:, ranks[0] : ranks[1]]
        up = B.t().expand(len(y), -1, -1)
        (y if rows is None else y[:, rows[0] : rows[1]]).baddbmm_(up, part)
