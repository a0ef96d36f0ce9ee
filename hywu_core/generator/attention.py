"""Multi-head attention with rotary positions: over the generator's own positions, and to the condition.

Shapes: G groups that attend within themselves, N positions, B batch, S condition tokens, H heads, E channels
of a head, D = H * E.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .positions import Rotation, rotate, rotate_


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q (G, N, H, E), k and v (G, S, H, E), mask (G, S) True where to look, to (G, N, D)."""
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
    if mask is not None:
        mask = mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def turn(projected: Tensor, rotation: Rotation) -> Tensor:
    """Turn what a projection has just made, in its own memory where no gradient needs it."""
    return rotate(projected, rotation) if torch.is_grad_enabled() else rotate_(projected, rotation)


class SelfAttention(nn.Module):
    """Every position of a group attends to all positions of the group."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """x (G, N, D), rotation of N positions, to (G, N, D)."""
        qkv = self.qkv(x).unflatten(-1, (3 * self.n_heads, -1))
        qk, v = qkv.split([2 * self.n_heads, self.n_heads], dim=2)
        q, k = turn(qk, rotation).chunk(2, dim=2)
        gathered = attend(q, k, v)
        del qkv, qk, q, k, v  # half of what is in memory here
        return self.out(gathered)


class CrossAttention(nn.Module):
    """Every position attends to the condition."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(d_model, d_model)
        self.kv = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def keys(self, condition: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Keys and values (B, S, H, E) of a condition (B, S, D), for any number of calls."""
        k, v = self.kv(condition).unflatten(-1, (2 * self.n_heads, -1)).chunk(2, dim=2)
        return turn(k, rotation), v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rotation: Rotation) -> Tensor:
        """x (B, N, D), k and v (B, S, H, E), mask (B, S) bool or None, rotation of N positions, to (B, N, D).

        x may have a batch of one against any B: its queries are then computed once and shared.
        """
        q = turn(self.q(x).unflatten(-1, (self.n_heads, -1)), rotation)
        gathered = attend(q.expand(len(k), -1, -1, -1), k, v, mask)
        del q
        return self.out(gathered)
