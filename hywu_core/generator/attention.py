"""Multi-head attention with rotary positions: over the generator's own positions, and to the condition.

Shapes: G groups that attend within themselves, N positions, B batch, S condition tokens, H heads, E channels
of a head, D = H * E.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .positions import Rotation, rotate


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q (G, N, H, E), k and v (G, S, H, E), mask (G, S) True where to look, to (G, N, D)."""
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
    if mask is not None:
        mask = mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


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
        q, k = rotate(qk, rotation).chunk(2, dim=2)
        return self.out(attend(q, k, v))


class CrossAttention(nn.Module):
    """Every position attends to the condition."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(d_model, d_model)
        self.kv = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        mask: Tensor | None,
        x_rotation: Rotation,
        condition_rotation: Rotation,
    ) -> Tensor:
        """x (B, N, D), condition (B, S, D), mask (B, S) bool or None, to (B, N, D).

        x may have a batch of one against any B: its queries are then computed once and shared.
        """
        q = rotate(self.q(x).unflatten(-1, (self.n_heads, -1)), x_rotation)
        k, v = self.kv(condition).unflatten(-1, (2 * self.n_heads, -1)).chunk(2, dim=2)
        k = rotate(k, condition_rotation)
        return self.out(attend(q.expand(len(k), -1, -1, -1), k, v, mask))
