"""One block of the Neural Network Transformer (paper 3.5).

Shapes: B batch (1 while nothing depends on the condition yet), L layers of a band, P = T * r / a positions
of a layer, D model width, S condition tokens.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .attention import CrossAttention, SelfAttention
from .config import GeneratorConfig
from .positions import BandRotations


class FeedForward(nn.Module):
    """Position-wise D -> mlp_ratio * D -> D with a SiLU between."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, d_hidden)
        self.fc2 = nn.Linear(d_hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.fc2(F.silu(self.fc1(x)))


class Block(nn.Module):
    """Attention between layers, within a layer and to the condition, then feed-forward; all residual."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        d, heads, eps = config.d_model, config.n_heads, config.norm_eps
        self.layer_norm = nn.RMSNorm(d, eps=eps)
        self.layer_attention = SelfAttention(d, heads)
        self.token_norm = nn.RMSNorm(d, eps=eps)
        self.token_attention = SelfAttention(d, heads)
        self.condition_norm = nn.RMSNorm(d, eps=eps)
        self.condition_attention = CrossAttention(d, heads)
        self.feed_forward_norm = nn.RMSNorm(d, eps=eps)
        self.feed_forward = FeedForward(d, config.d_hidden)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None, rotations: BandRotations) -> Tensor:
        """x (B or 1, L, P, D), condition (B, S, D), mask (B, S) or None, to (B, L, P, D)."""
        return self.attend_condition(self.attend_parameters(x, rotations), condition, mask, rotations)

    def attend_parameters(self, x: Tensor, rotations: BandRotations) -> Tensor:
        """The half that never sees the condition: inter- and intra-layer attention on (B, L, P, D)."""
        batch, n_layers = x.shape[:2]
        columns = self.layer_norm(x).transpose(1, 2).flatten(0, 1)  # (B P) L D
        attended = self.layer_attention(columns, rotations.layer)
        x = x + attended.unflatten(0, (batch, -1)).transpose(1, 2)

        rows = self.token_norm(x).flatten(0, 1)  # (B L) P D
        return x + self.token_attention(rows, rotations.token).unflatten(0, (batch, n_layers))

    def attend_condition(
        self, x: Tensor, condition: Tensor, mask: Tensor | None, rotations: BandRotations
    ) -> Tensor:
        """The half that does: x (B or 1, L, P, D), condition (B, S, D), to (B, L, P, D)."""
        positions = self.condition_norm(x).flatten(1, 2)  # (B or 1) (L P) D
        attended = self.condition_attention(positions, condition, mask, rotations.query, rotations.key)
        x = x + attended.unflatten(1, x.shape[1:3])  # a batch of one grows to B here
        return x + self.feed_forward(self.feed_forward_norm(x))
