"""Adapter <-> parameter tokens, exact inverses of each other (paper 3.4).

Shape suffixes: P adapters in the batch, L layers of the band, T tokens per layer, r rank, C segment,
E experts, n segments of one matrix, D its channels (d_in of A, d_out of B^T).

A band's tokens are one tensor (P, L, T, r, C): the A-tokens of all modules first, then their B-tokens, both
in module order; the E matrices of grouped experts follow each other. Decoding runs in every training step:
it makes one copy per band (rank_anchored) or none (flat) and hands out views; `split` and `unbind` rather
than slices, because their backward is one `cat` and one `stack` instead of a zero-filled tensor per slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import HywuError
from ..lora.adapter import Adapter
from ..lora.spec import Band, LoraSpec, ModuleShape
from .layout import TokenLayout, n_tokens


def encode(adapter: Adapter, spec: LoraSpec, layout: TokenLayout) -> dict[str, Tensor]:
    """Cut an adapter into tokens: band name -> (P, L, T, r, C), zero-padded where a segment does not divide.

    An adapter whose scale is not the spec's has the ratio folded into B. Raises `HywuError` if the
    adapter's targets, shapes or rank are not the spec's.
    """
    adapter.check_shapes(spec)
    return {band.name: _encode_band(adapter, band, spec, layout) for band in spec.bands}


def decode(tokens: Mapping[str, Tensor], spec: LoraSpec, layout: TokenLayout) -> Adapter:
    """Put tokens {band name: (P, L, T, r, C)} together to an adapter of the spec's scale; drop padding.

    Differentiable; A and B are views of one tensor per band. Raises `HywuError` if a band is missing or has
    the wrong shape.
    """
    weights: dict[str, tuple[Tensor, Tensor]] = {}
    for band in spec.bands:
        if band.name not in tokens:
            raise HywuError(f"There are no tokens for band {band.name!r}; there are for {sorted(tokens)}.")
        weights |= _decode_band(tokens[band.name], band, spec, layout)
    return Adapter({target.name: weights[target.name] for target in spec.targets}, spec.scale)


def _encode_band(adapter: Adapter, band: Band, spec: LoraSpec, layout: TokenLayout) -> Tensor:
    fold = adapter.scale / spec.scale
    A_tokens, B_tokens = [], []
    for module in band.modules:
        names = [band.target_name(layer, module) for layer in band.layers]
        A_PLErD = torch.stack([adapter[name][0] for name in names], dim=1)
        B_PLEDr = torch.stack([adapter[name][1] for name in names], dim=1)
        if fold != 1:
            B_PLEDr = B_PLEDr * fold
        if layout.kind == "rank_anchored":
            B_PLEDr = B_PLEDr.transpose(-1, -2)
        cut = _cut_channels if layout.kind == "rank_anchored" else _cut_runs
        A_tokens.append(cut(A_PLErD, spec.rank, layout.segment))
        B_tokens.append(cut(B_PLEDr, spec.rank, layout.segment))
    return torch.cat(A_tokens + B_tokens, dim=2)


def _cut_channels(W_PLErD: Tensor, rank: int, segment: int) -> Tensor:
    """(P, L, [E,] r, D) -> (P, L, [E] n, r, C), one token per segment of the channel axis."""
    padded = F.pad(W_PLErD, (0, -W_PLErD.shape[-1] % segment))
    W_PLErnC = padded.unflatten(-1, (-1, segment))
    return W_PLErnC.transpose(-3, -2).reshape(*W_PLErD.shape[:2], -1, rank, segment)


def _cut_runs(W_PLEab: Tensor, rank: int, segment: int) -> Tensor:
    """(P, L, ...) -> (P, L, n, r, C), runs of r * C consecutive numbers."""
    flat = W_PLEab.flatten(2)
    return F.pad(flat, (0, -flat.shape[-1] % (rank * segment))).unflatten(-1, (-1, rank, segment))


def _decode_band(tokens: Tensor, band: Band, spec: LoraSpec, layout: TokenLayout) -> dict:
    T_A, T_B = n_tokens(band, layout, spec.rank)
    expected = (band.n_layers, T_A + T_B, spec.rank, layout.segment)
    if tokens.dim() != 5 or tuple(tokens.shape[1:]) != expected:
        raise HywuError(
            f"The tokens of band {band.name!r} have shape {tuple(tokens.shape)}; expected (batch, "
            f"{', '.join(map(str, expected))}) for layers, tokens, rank and segment."
        )
    counts = [layout.module_tokens(module, spec.rank) for module in band.modules]
    sizes = [a for a, _ in counts] + [b for _, b in counts]
    if layout.kind == "rank_anchored":
        # The band's only copy: with the rank outside, a matrix's segments are neighbours; joining is a view.
        parts = tokens.transpose(2, 3).contiguous().split(sizes, dim=3)
    else:
        parts = tokens.split(sizes, dim=2)
    weights = {}
    for number, module in enumerate(band.modules):
        A_part, B_part = parts[number], parts[number + len(band.modules)]
        if layout.kind == "rank_anchored":
            A = _join_channels(A_part, module, module.d_in)
            B = _join_channels(B_part, module, module.d_out).transpose(-1, -2)
        else:
            A = _join_runs(A_part, module, (spec.rank, module.d_in))
            B = _join_runs(B_part, module, (module.d_out, spec.rank))
        for layer, pair in zip(band.layers, zip(A.unbind(1), B.unbind(1), strict=True), strict=True):
            weights[band.target_name(layer, module)] = pair
    return weights


def _join_channels(W_PLrnC: Tensor, module: ModuleShape, channels: int) -> Tensor:
    """(P, L, r, [E] n, C) -> (P, L, [E,] r, D)."""
    if module.experts:
        W_PLrnC = W_PLrnC.unflatten(3, (module.experts, -1)).transpose(2, 3)
    joined = W_PLrnC.flatten(-2)
    return joined if joined.shape[-1] == channels else joined[..., :channels]


def _join_runs(W_PLnrC: Tensor, module: ModuleShape, matrix: tuple[int, int]) -> Tensor:
    """(P, L, n, r, C) -> (P, L, [E,] *matrix)."""
    shape = (module.experts, *matrix) if module.experts else matrix
    flat = W_PLnrC.flatten(2)
    return (flat if flat.shape[-1] == prod(shape) else flat[..., : prod(shape)]).unflatten(-1, shape)
