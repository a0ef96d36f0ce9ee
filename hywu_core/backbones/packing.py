"""Latent images as the tokens of FLUX and its relatives: 2 x 2 latents are one token.

Shapes: B batch, Z latent channels, h x w latents, N = (h/2)(w/2) tokens.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

PATCH = 2


def count_tokens(latents: Tensor) -> int:
    """N, the tokens of latents (B, Z, h, w)."""
    return latents.shape[-2] * latents.shape[-1] // PATCH**2


def patchify(latents: Tensor) -> Tensor:
    """Latents (B, Z, h, w) to tokens (B, N, 4Z)."""
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)


def unpatchify(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, N, 4Z) back to latents (B, Z, height, width)."""
    return rearrange(
        tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height // PATCH, w=width // PATCH, p=PATCH, q=PATCH
    )


def position_ids(
    index: int, height: int, width: int, device: torch.device, start: tuple[int, int] = (0, 0)
) -> Tensor:
    """RoPE indices (N, 3) of a latent image: (index, row, column) of every token, counted from `start`."""
    rows = torch.arange(height // PATCH, device=device) + start[0]
    columns = torch.arange(width // PATCH, device=device) + start[1]
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.full_like(row, index), row, column], dim=-1).reshape(-1, 3)
