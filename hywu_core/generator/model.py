"""The parameter generator g_phi: a condition goes in, an adapter comes out (paper 3.2 and 3.5).

Shapes: B batch, S condition tokens, L layers of a band, T tokens per layer, r rank, a accumulation,
P = T * r / a positions per layer, D model width, R = D / a row width, C segment.

    condition (B, S, condition_dim) -> linear, RMSNorm ---------------.
    for each band:                                                    v
        prior (1, L, P, D) -> RMSNorm -> n_layers x [over L, over P, to the condition, feed-forward]
        -> RMSNorm -> rows (B, L, T, r, R) -> proj_out_A | proj_out_B -> tokens (B, L, T, r, C)
    tokens of all bands -> adapter
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..conditions import Condition
from ..errors import HywuError
from ..lora import Adapter, LoraSpec
from ..tokens import TokenLayout, decode
from .bands import BandParameters
from .blocks import Block
from .config import GeneratorConfig
from .initialise import initialise
from .positions import RotaryTables


class ParameterGenerator(nn.Module):
    """The Neural Network Transformer over a backbone's parameter tokens. A fresh one changes exactly nothing.

    config, spec, layout: its size, what it adapts, and how that is cut into tokens (default: rank-anchored).
    encoder_info, backbone_info, provenance: plain data that travels in its file (see `checkpoint.py`).
    gradient_checkpointing: recompute the blocks in the backward pass instead of storing their activations.

    Raises HywuError when the accumulation does not divide the spec's rank.
    """

    def __init__(self, config: GeneratorConfig, spec: LoraSpec, layout: TokenLayout | None = None) -> None:
        super().__init__()
        if spec.rank % config.accumulation:
            raise HywuError(
                f"The generator's accumulation {config.accumulation} does not divide the rank {spec.rank}."
            )
        self.config = config
        self.spec = spec
        self.layout = layout if layout is not None else TokenLayout.for_spec(spec)
        self.encoder_info: dict[str, Any] = {}
        self.backbone_info: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}
        self.gradient_checkpointing = False

        d_model, eps = config.d_model, config.norm_eps
        self.condition_in = nn.Linear(config.condition_dim, d_model)
        self.condition_norm = nn.RMSNorm(d_model, eps=eps)
        self.bands = nn.ModuleList(
            BandParameters(config, band, self.layout, spec.rank) for band in spec.bands
        )
        self.prior_norm = nn.RMSNorm(d_model, eps=eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = nn.RMSNorm(d_model, eps=eps)
        self.proj_out_A = nn.Linear(config.d_row, self.layout.segment)
        self.proj_out_B = nn.Linear(config.d_row, self.layout.segment)
        self._rotary_tables = RotaryTables(config.head_dim, config.rope_theta)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start anew: fill all weights from torch's random state, see `initialise.py`."""
        initialise(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.condition_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.condition_in.weight.dtype

    @property
    def n_parameters(self) -> int:
        """Number of weights of the generator itself; `spec.n_parameters` is what it generates."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, condition: Condition, on_block: Callable[[int, int], None] | None = None) -> Adapter:
        """One adapter for each of the B conditions, differentiable in the weights and in the condition.

        on_block: called with (blocks done, blocks in all) after every block of every band; an exception in it
            ends the forward pass and passes through.

        Raises HywuError when the condition's channels are not those this generator was made for.
        """
        if condition.dim != self.config.condition_dim:
            encoder = self.encoder_info.get("id")
            raise HywuError(
                f"The condition has {condition.dim} channels, but this generator reads "
                f"{self.config.condition_dim}; use the encoder it was made for"
                + (f", {encoder!r}." if encoder else ".")
            )
        # The second cast undoes autocast: a norm is fast, and exact, only in the dtype of its weight.
        context = self.condition_in(condition.tokens.to(self.dtype)).to(self.dtype)
        context = self.condition_norm(context)
        done = count(1)

        def block_done() -> None:
            if on_block is not None:
                on_block(next(done), len(self.bands) * len(self.blocks))

        tokens = {
            band.name: self._generate(parameters, context, condition.mask, block_done)
            for band, parameters in zip(self.spec.bands, self.bands, strict=True)
        }
        return decode(tokens, self.spec, self.layout)

    def _generate(
        self, band: BandParameters, context: Tensor, mask: Tensor | None, block_done: Callable[[], None]
    ) -> Tensor:
        """context (B, S, D), mask (B, S) or None, to the band's tokens (B, L, T, r, C)."""
        grid = (band.n_layers, sum(band.n_tokens), band.n_ranks)
        rotations = self._rotary_tables.band(grid, context.shape[1], context.device)
        x = self.prior_norm(band.prior())  # stays a batch of one until the first block looks at the condition
        for block in self.blocks:
            x = self._run(block, x, context, mask, rotations)
            block_done()
        A, B = band.rows(self.final_norm(x))
        return band.tokens(self.proj_out_A(A), self.proj_out_B(B))

    def _run(self, block: Callable[..., Tensor], *args: Any) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ParameterGenerator:
        self._rotary_tables.clear()  # the tables of the device it leaves
        return super()._apply(fn, recurse)
