"""Multi-head attention with rotary positions: over the generator's own positions, and to the condition.

Shapes: G groups that attend within themselves, N positions, B batch, S condition tokens, H heads, E channels
    of a head,
D = H * E.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .positions import Rotation, rotate


def split_heads(x: Tensor, parts: int, n_heads: int) -> Tensor:
    """(G, N, parts * D) to (parts, G, H, N, E)."""
    return x.unflatten(-1, (parts, n_heads, -1)).permute(2, 0, 3, 1, 4)


def merge_heads(x: Tensor) -> Tensor:
    """(G, H, N, E) to (G, N, D)."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Every position of a group attends to all positions of the group."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """x (G, N, D), rotation of N positions, to (G, N, D)."""
        qkv = split_heads(self.qkv(x), 3, self.n_heads)
        q, k = rotate(qkv[:2], rotation)
        return self.out(merge_heads(F.scaled_dot_product_attention(q, k, qkv[2])))


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
        (q,) = split_heads(self.q(x), 1, self.n_heads)
        k, v = split_heads(self.kv(condition), 2, self.n_heads)
        q, k = rotate(q, x_rotation), rotate(k, condition_rotation)
        q = q.expand(k.shape[0], -1, -1, -1)
        attention_mask = None if mask is None else mask[:, None, None, :]
        return self.out(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)))
