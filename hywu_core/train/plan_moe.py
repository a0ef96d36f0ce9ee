"""The shape of a mixture-of-experts transformer with LoRAs, to rehearse a step of HunyuanImage-3.0's.

Known from the released generator's config: width, linears, dims, 64 experts and a shared one. Assumed: every
token attends to all, 8 experts of the 64 serve each token (which makes the published 13B of 80B active),
and tokens are spread over the experts evenly.

Shapes: R rows, N tokens of a row, D width, E experts, n tokens of an expert, P adapters, r rank, K kv heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..apply import Attachment, attach
from ..lora import Adapter


class EvenExperts(nn.Module):
    """Experts of stacked weights that each get as many tokens as the others."""

    def __init__(self, width: int, inner: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.experts, self.top_k = experts, top_k
        self.w1 = nn.Parameter(torch.empty(experts, inner, width))
        self.w2 = nn.Parameter(torch.empty(experts, width, inner))
        self.w3 = nn.Parameter(torch.empty(experts, inner, width))
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(R, N, D) to (R, N, D)."""
        flat = x.flatten(0, 1)
        adapters = len(next(iter(self.pairs.values()))[0]) if self.pairs else 1
        each = adapters * ceil(len(flat) * self.top_k / (self.experts * adapters))
        routes = torch.arange(self.experts * each, device=x.device) % len(flat)
        routed = flat[routes].unflatten(0, (self.experts, each))
        inner = F.silu(self._product("w1", routed)) * self._product("w3", routed)
        share = torch.ones_like(inner[..., :1])  # the router's weight of a token
        out = (self._product("w2", inner) * share).flatten(0, 1)
        return torch.zeros_like(flat).index_add(0, routes, out).view_as(x)

    def _product(self, name: str, x: Tensor) -> Tensor:
        """x (E, n, d_in) to (E, n, d_out), with the update of the adapter each token belongs to."""
        y = torch.bmm(x, getattr(self, name).mT)
        if name not in self.pairs:
            return y
        A, B = (
            pair.transpose(0, 1).to(x.dtype) for pair in self.pairs[name]
        )  # (E, P, r, d_in), (E, P, d_out, r)
        h = x.unflatten(1, (A.shape[1], -1)) @ A.mT
        return y + (h @ B.mT).flatten(1, 2)


class _Layer(nn.Module):
    def __init__(self, dims: Mapping[str, tuple[int, int]], head_dim: int, experts: int, top_k: int) -> None:
        super().__init__()
        width, qkv = dims["self_attn.qkv_proj"]
        self.heads, self.head_dim = width // head_dim, head_dim
        self.kv_heads = (qkv - width) // (2 * head_dim)
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q_norm, self.k_norm = nn.RMSNorm(head_dim), nn.RMSNorm(head_dim)
        self.self_attn, self.mlp, self.mlp.shared_mlp = nn.Module(), nn.Module(), nn.Module()
        self.self_attn.qkv_proj = nn.Linear(width, qkv, bias=False)
        self.self_attn.o_proj = nn.Linear(*dims["self_attn.o_proj"], bias=False)
        self.mlp.gate = nn.Linear(width, experts, bias=False)
        self.mlp.shared_mlp.gate_and_up_proj = nn.Linear(*dims["mlp.shared_mlp.gate_and_up_proj"], bias=False)
        self.mlp.shared_mlp.down_proj = nn.Linear(*dims["mlp.shared_mlp.down_proj"], bias=False)
        self.mlp.experts = EvenExperts(*dims["mlp.experts.w1"], experts, top_k)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.self_attn.qkv_proj(self.norm1(x)).unflatten(-1, (-1, self.head_dim))
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        q, k, v = (heads.transpose(1, 2) for heads in (self.q_norm(q), self.k_norm(k), v))
        k, v = (heads.repeat_interleave(self.heads // self.kv_heads, dim=1) for heads in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.self_attn.o_proj(attended)
        normed = self.norm2(x)
        gate, up = self.mlp.shared_mlp.gate_and_up_proj(normed).chunk(2, dim=-1)
        shared = self.mlp.shared_mlp.down_proj(F.silu(gate) * up)
        self.mlp.gate(normed.float().to(normed.dtype)).softmax(-1)
        return x + shared + self.mlp.experts(normed)


class MixtureBackbone(nn.Module):
    """Layers between a linear in and a linear out; `layers` modules named as the released generator says."""

    def __init__(
        self,
        layers: int,
        dims: Mapping[str, tuple[int, int]],
        head_dim: int,
        experts: int,
        top_k: int,
        channels: int,
        vocabulary: int,
    ) -> None:
        super().__init__()
        width = dims["self_attn.qkv_proj"][0]
        self.gradient_checkpointing = False
        self.model = nn.Module()
        self.model.embed = nn.Embedding(vocabulary, width)
        self.model.layers = nn.ModuleList(_Layer(dims, head_dim, experts, top_k) for _ in range(layers))
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.image_in, self.image_out = nn.Linear(channels, width), nn.Linear(width, channels)

    def enable_gradient_checkpointing(self) -> None:
        """As diffusers' models call it."""
        self.gradient_checkpointing = True

    def forward(self, words: Tensor, image: Tensor) -> Tensor:
        """words (R, S) and image tokens (R, N, channels) to velocities (R, N, channels)."""
        x = torch.cat([self.model.embed(words), self.image_in(image)], dim=1)
        for layer in self.model.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.gradient_checkpointing else layer(x)
        return self.image_out(x[:, words.shape[1] :])

    def adapt(self, adapter: Adapter) -> Attachment:
        """Attach an adapter; where there are experts, for good, to their stacked weights."""
        plain = {name: pair for name, pair in adapter.items() if pair[0].dim() == 3}
        for name in adapter.keys() - plain.keys():
            path, _, weight = name.rpartition(".")
            self.get_submodule(path).pairs[weight] = adapter[name]
        return attach(self, Adapter(plain, adapter.scale))
