"""Matrices as small integers with one float16 scale a row: 8 bits, or 4 bits packed two to a byte.

Shapes: R rows (the first axis), K values in a row (all other axes); codes (R, K) at 8 bits, (R, K/2) at 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import HywuError

# Fractions of a row's peak that the outermost code may stand for: at 4 bits clipping a few outliers pays.
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


def _row_scale(rows: Tensor, limit: int) -> Tensor:
    """The scale (R, 1) among `_CLIPS` with the least squared error, already rounded to float16."""
    peak = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-4)
    scales = [(peak * clip / limit).half().float() for clip in _CLIPS]
    errors = [
        ((rows / s).round().clamp(-limit, limit) * s - rows).square().sum(1, keepdim=True) for s in scales
    ]
    best = torch.cat(errors, dim=1).argmin(dim=1, keepdim=True)
    return torch.cat(scales, dim=1).gather(1, best)


def _codes(matrix: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    limit = 2 ** (bits - 1) - 1
    rows = matrix.flatten(1)
    scale = _row_scale(rows, limit)
    return (rows / scale).round().clamp(-limit, limit), scale


def round_trip(matrix: Tensor, bits: int) -> Tensor:
    """What `dequantize(*quantize(matrix, bits), matrix.shape)` gives, without packing."""
    codes, scale = _codes(matrix, bits)
    return (codes * scale).reshape(matrix.shape)


def quantize(matrix: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """A float matrix (R, ...) to integer codes (int8, or uint8 pairs at 4 bits) and scales (R, 1) float16."""
    if bits not in (4, 8):
        raise HywuError(f"Weights can be kept in 4 or 8 bits, not {bits}.")
    codes, scale = _codes(matrix, bits)
    if bits == 8:
        return codes.to(torch.int8), scale.half()
    if codes.shape[1] % 2:
        raise HywuError(f"A row of {codes.shape[1]} values cannot be packed in pairs; use 8 bits.")
    nibbles = (codes + 8).to(torch.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4), scale.half()


def dequantize(codes: Tensor, scale: Tensor, shape: Sequence[int]) -> Tensor:
    """Codes and scales to the float32 matrix of the given shape; the codes' dtype tells the bits."""
    if codes.dtype == torch.uint8:
        codes = torch.stack([codes & 15, codes >> 4], dim=2).flatten(1).float() - 8
    if codes.numel() != math.prod(shape):
        raise HywuError(f"{codes.numel()} quantised values do not fill a matrix of shape {tuple(shape)}.")
    return (codes.float() * scale.float()).reshape(tuple(shape))
