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
from .blocks import Block, Context
from .config import GeneratorConfig
from .initialise import initialise
from .positions import BandRotations, RotaryTables
from .sequence import WHOLE, Sequence
from .start import KeptStarts
from .tiles import all_tiles, default_rows, row_bytes, spans, whole_layers

KEEP_START_BYTES = 2**28  # 2 % of the released generator's work would be 1.4 GB: better spent on weights


class ParameterGenerator(nn.Module):
    """The Neural Network Transformer over a backbone's parameter tokens. A fresh one changes exactly nothing.

    config, spec, layout: its size, what it adapts, and how that is cut into tokens (default: rank-anchored).
    encoder_info, backbone_info, provenance: plain data that travels in its file (see `checkpoint.py`).
    gradient_checkpointing: recompute the blocks in the backward pass instead of storing their activations.
    activation_bytes: bound on the temporaries of a forward pass beyond x itself, or None for what is fast on
        the device; one layer's attention is the least there is. See `memory.py` for what it comes to in all.
    sequence: who works on a band's positions while gradients are recorded; otherwise all are worked on here.
    keep_start_bytes: what depends on no condition is kept between calls if it takes no more than this.

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
        self.activation_bytes: int | None = None
        self.sequence: Sequence = WHOLE
        self.keep_start_bytes = KEEP_START_BYTES

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
        self._starts = KeptStarts()
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

    @property
    def rows_at_once(self) -> int:
        """Positions that go through a block at a time."""
        if self.activation_bytes is None:
            return default_rows(self.device)
        each = row_bytes(self.config, self.dtype.itemsize, self.layout.segment).most
        return max(1, self.activation_bytes // each)

    @property
    def keeps_start(self) -> bool:
        """Whether what depends on no condition is small enough to be kept between calls."""
        positions = sum(band.n_layers * band.n_places for band in self.bands)
        return positions * self.config.d_model * self.dtype.itemsize <= self.keep_start_bytes

    def compile_blocks(self, **options: Any) -> ParameterGenerator:
        """Let torch compile what a block does with a tile; options go to `torch.compile`. Returns self."""
        for block in self.blocks:
            block.compile_parts(**options)
        return self

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
        records = torch.is_grad_enabled() and (
            condition.tokens.requires_grad or any(p.requires_grad for p in self.parameters())
        )
        total, done = len(self.bands) * len(self.blocks), count(1)

        def block_done() -> None:
            if on_block is not None:
                on_block(next(done), total)

        # Without a gradient to record, what is computed overwrites what it was computed from.
        with torch.set_grad_enabled(records):
            # The second cast undoes autocast: a norm is fast, and exact, only in the dtype of its weight.
            tokens = self.condition_in(condition.tokens.to(self.dtype)).to(self.dtype)
            context = Context(self.condition_norm(tokens), condition.mask)
            generate = self._generate if records else self._generate_in_place
            tokens = {
                band.name: generate(number, context, block_done)
                for number, band in enumerate(self.spec.bands)
            }
            return decode(tokens, self.spec, self.layout)

    def _generate(self, number: int, context: Context, block_done: Callable[[], None]) -> Tensor:
        """The tokens (B, L, T, r, C) of a band, differentiable."""
        band = self.bands[number]
        sequence = self.sequence
        rotations = self._rotations(band, context).of_layers(sequence.own_layers)
        recompute = self.gradient_checkpointing and self.training
        # Storing every activation, a bound on those in work would bound nothing.
        rows = self.rows_at_once if recompute and self.activation_bytes is not None else None
        x = self.prior_norm(band.prior())  # stays a batch of one until the first block looks at the condition
        x = sequence.enter(x)
        for depth, block in enumerate(self.blocks):
            if depth:
                x = sequence.to_columns(x, band.n_layers)
            if recompute:  # from x alone; and within that, where there is a bound, from each tile of x
                again = rows is not None
                x = checkpoint(
                    block, x, context, rotations, rows, False, again, sequence, use_reentrant=False
                )
            else:
                x = block(x, context, rotations, sequence=sequence)
            block_done()
        A, B = band.rows(self.final_norm(x))
        return sequence.leave(band.tokens(self.proj_out_A(A), self.proj_out_B(B)), band.n_layers)

    def _generate_in_place(self, number: int, context: Context, block_done: Callable[[], None]) -> Tensor:
        """The same without gradients: one activation in memory, and the temporaries of some of its rows."""
        band = self.bands[number]
        rotations = self._rotations(band, context)
        rows = self.rows_at_once
        first, *others = self.blocks

        def start() -> Tensor:
            with torch.inference_mode(False), torch.no_grad():  # it may outlive the inference it is made in
                return first(self._prior(band, rows), None, rotations, rows)

        if self.keeps_start:
            x = self._starts.get(number, self._start_weights(band), start)
            x = first(x, context, rotations, rows, halfway=True)
        else:
            x = first(self._prior(band, rows), context, rotations, rows)
        block_done()
        for block in others:
            x = block(x, context, rotations, rows)
            block_done()
        return self._tokens(band, x, rows)

    def _rotations(self, band: BandParameters, context: Context) -> BandRotations:
        grid = (band.n_layers, sum(band.n_tokens), band.n_ranks)
        return self._rotary_tables.band(grid, context.tokens.shape[1], context.tokens.device)

    def _prior(self, band: BandParameters, rows: int) -> Tensor:
        """The normalised prior (1, L, P, D), made a few layers at a time."""
        x = band.token_rank.new_empty(1, band.n_layers, band.n_places, self.config.d_model)
        for layers in spans(band.n_layers, rows // band.n_places):
            x[:, layers] = self.prior_norm(band.prior(layers))
        return x

    def _tokens(self, band: BandParameters, x: Tensor, rows: int) -> Tensor:
        """The tokens (B, L, T, r, C) of a band's last activation x (B, L, P, D), a few layers at a time."""
        n_tokens, segment = sum(band.n_tokens), self.layout.segment
        if (
            self.layout.kind == "rank_anchored"
        ):  # with the rank outside, as `decode` wants to have it in memory
            tokens = x.new_empty(*x.shape[:2], band.rank, n_tokens, segment).transpose(2, 3)
        else:
            tokens = x.new_empty(*x.shape[:2], n_tokens, band.rank, segment)
        for batch, layers, _ in all_tiles(whole_layers(x.shape, rows)):
            A, B = band.rows(self.final_norm(x[batch, layers]))
            band.write_tokens(tokens[batch, layers], self.proj_out_A(A), self.proj_out_B(B))
        return tokens

    def _start_weights(self, band: BandParameters) -> list[Tensor]:
        """What a start is made of: it is kept for as long as none of these is written to."""
        modules = (self.prior_norm, *self.blocks[0].parameters_half())
        return [
            band.token_rank,
            band.layer,
            *(tensor for module in modules for tensor in (*module.parameters(), *module.buffers())),
        ]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ParameterGenerator:
        self._rotary_tables.clear()  # the tables of the device it leaves
        self._starts.clear()
        return super()._apply(fn, recurse)
