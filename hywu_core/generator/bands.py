"""What the generator knows of each band by itself: where its tokens start from, and how large they end.

Shapes: L layers of the band, T tokens per layer, r rank, a accumulation, P = T * r / a positions per layer,
D model width, R = D / a row width, C segment, B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..lora.spec import Band
from ..tokens import TokenLayout, n_tokens
from .config import GeneratorConfig


class BandParameters(nn.Module):
    """The learned structural prior of one band (paper 3.5), and the gains of its tokens.

    token_rank: (T * r, R) and layer: (L, R); a prior row is the sum of one of each. The blocks are shared by
        all bands, so these embeddings are also what tells the bands apart.
    gain: (T,), or None where the config wants no gains.
    """

    gain: Tensor | None

    def __init__(self, config: GeneratorConfig, band: Band, layout: TokenLayout, rank: int) -> None:
        super().__init__()
        self.n_layers = band.n_layers
        self.n_tokens = n_tokens(band, layout, rank)
        self.rank = rank
        self.n_ranks = rank // config.accumulation
        self.token_rank = nn.Parameter(torch.empty(sum(self.n_tokens) * rank, config.d_row))
        self.layer = nn.Parameter(torch.empty(band.n_layers, config.d_row))
        gain = torch.empty(sum(self.n_tokens))
        if config.output_gain == "learned":
            self.gain = nn.Parameter(gain)
        else:
            self.register_buffer("gain", gain if config.output_gain == "fixed" else None)

    @property
    def n_places(self) -> int:
        """P, the positions of a layer."""
        return sum(self.n_tokens) * self.n_ranks

    def prior(self, layers: slice | None = None) -> Tensor:
        """The latent sequence before any block, (1, L, P, D): `a` consecutive rank rows share a position.

        layers: only these l of the L.
        """
        layer = self.layer if layers is None else self.layer[layers]
        rows = self.token_rank + layer[:, None]  # l (T r) R
        return rows.view(1, len(rows), self.n_places, -1)

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (B, L, P, D) back to rows: of A (B, L, T_A, r, R) and of B (B, L, T_B, r, R)."""
        width = x.shape[-1] * self.n_ranks // self.rank  # in numbers: of no layers, -1 could be anything
        rows = x.view(*x.shape[:2], sum(self.n_tokens), self.rank, width)
        return rows.split(self.n_tokens, dim=2)

    def tokens(self, A: Tensor, B: Tensor) -> Tensor:
        """Projected rows of A (B, L, T_A, r, C) and of B (B, L, T_B, r, C) to tokens (B, L, T, r, C)."""
        tokens = torch.cat([A, B], dim=2)
        return tokens if self.gain is None else tokens * self.gain[:, None, None].to(tokens.dtype)

    def write_tokens(self, tokens: Tensor, A: Tensor, B: Tensor) -> None:
        """Put what `tokens` would return of (B, l, T_A, r, C) and (B, l, T_B, r, C) into (B, l, T, r, C)."""
        gains = [None, None] if self.gain is None else self.gain[:, None, None].split(self.n_tokens)
        for place, rows, gain in zip(tokens.split(self.n_tokens, dim=2), (A, B), gains, strict=True):
            place.copy_(rows if gain is None else rows.mul_(gain.to(rows.dtype)))
