"""The low-rank side path of a linear that several targets share, added in place to the linear's own output.

A runtime may fuse what the adapter knows as separate targets: FLUX's to_q, to_k, to_v and proj_mlp are row
slices of one linear in ComfyUI. All of them read the same input, so one product with the stacked A serves
them, and each B adds to the rows it owns, without a copy of the output.

Shapes: M activation rows, P adapters, N positions of a row, r rank of a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import HywuError


@dataclass(frozen=True, eq=False)
class Part:
    """One target's update of a linear: A (P, r, d_in), B (P, d, r) that holds scale and strength already.

    start: the first of the d output rows that it adds to.
    """

    A: Tensor
    B: Tensor
    start: int = 0


class FusedPath(nn.Module):
    """y[m, ..., rows_i] += (x[m] A_i^T) B_i^T for every part i.

    P = 1 serves all rows; otherwise activation row m belongs to adapter m mod P, because runtimes stack whole
    batches (positive and negative conditions, say) one after the other: M = k * P.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self.A = _frozen(torch.cat([part.A for part in parts], dim=1))
        self._slices: list[
            tuple[str, slice, slice]
        ] = []  # of every part: its B, its ranks in A, its output rows
        first = 0
        for i, part in enumerate(parts):
            rank, d_out = part.A.shape[1], part.B.shape[1]
            # Direct parameters and no child modules: ComfyUI loads and offloads leaf modules as a whole.
            self.register_parameter(f"B{i}", _frozen(part.B))
            self._slices.append((f"B{i}", slice(first, first + rank), slice(part.start, part.start + d_out)))
            first += rank

    @property
    def batch(self) -> int:
        """The number of adapters P."""
        return self.A.shape[0]

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Add the update for x (M, ..., d_in) to y (M, ..., d_out); HywuError unless P divides M."""
        y = y.contiguous()  # as a linear's output is; the views below must not be copies
        if self.batch == 1:
            self._add(y.view(1, -1, y.shape[-1]), x.reshape(1, -1, x.shape[-1]))
            return y
        if len(x) % self.batch:
            raise HywuError(
                f"{self.batch} LoRAs cannot be shared out over a batch of {len(x)} rows: it must be a "
                "multiple of the "
                "number of LoRAs. Use as many images as LoRAs, or a single LoRA."
            )
        for y_k, x_k in zip(y.split(self.batch), x.split(self.batch), strict=True):
            self._add(y_k.view(self.batch, -1, y.shape[-1]), x_k.reshape(self.batch, -1, x.shape[-1]))
        return y

    def _add(self, y: Tensor, x: Tensor) -> None:
        """x (P, N, d_in) into y (P, N, d_out), a view of the output."""
        h = x.to(y.dtype) @ self.A.to(y).transpose(1, 2)
        for name, ranks, rows in self._slices:
            y[..., rows].baddbmm_(h[..., ranks], getattr(self, name).to(y).transpose(1, 2))


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=False)
