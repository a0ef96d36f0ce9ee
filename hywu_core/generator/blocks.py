"""One block of the Neural Network Transformer (paper 3.5).

Shapes: B batch (1 while nothing depends on the condition yet), L layers of a band, P = T * r / a positions
of a layer, D model width, S condition tokens, H heads, E channels of a head; b, l, p are parts of B, L, P.

Where no gradient is recorded, a block overwrites x, tile by tile: x and one tile's temporaries are all the
memory it takes. Where one is, every step makes a new tensor, and tiles serve to recompute a part at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attention import CrossAttention, SelfAttention
from .config import GeneratorConfig
from .positions import BandRotations, Rotation
from .sequence import WHOLE, Sequence
from .tiles import Tile, all_tiles, columns, map_tiles, spans, whole_layers


class Context(NamedTuple):
    """The condition as the blocks read it: tokens (B, S, D), mask (B, S) or None."""

    tokens: Tensor
    mask: Tensor | None


class Keys(NamedTuple):
    """The condition as one block's attention reads it: k and v (B, S, H, E), mask (B, S) or None."""

    k: Tensor
    v: Tensor
    mask: Tensor | None

    def part(self, batch: slice) -> Keys:
        """Of some rows of the batch."""
        return Keys(self.k[batch], self.v[batch], None if self.mask is None else self.mask[batch])


class FeedForward(nn.Module):
    """Position-wise D -> mlp_ratio * D -> D with a SiLU between."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, d_hidden)
        self.fc2 = nn.Linear(d_hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.fc2(F.silu(self.fc1(x), inplace=not torch.is_grad_enabled()))


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

    def parameters_half(self) -> tuple[nn.Module, ...]:
        """The modules of the half that never sees the condition."""
        return self.layer_norm, self.layer_attention, self.token_norm, self.token_attention

    def compile_parts(self, **options: Any) -> None:
        """Compile what is done with one tile; tiles of one shape, and all blocks, share the compiled code."""
        for name in ("between_layers", "within_layers", "to_condition"):
            setattr(self, name, torch.compile(getattr(self, name), **options))

    def forward(
        self,
        x: Tensor,
        context: Context | None,
        rotations: BandRotations,
        rows: int | None = None,
        halfway: bool = False,
        recompute: bool = False,
        sequence: Sequence = WHOLE,
    ) -> Tensor:
        """x (B or 1, L, P, D) and the condition's context to (B, L, P, D).

        context: None to stop before the half that reads it.
        rows: positions in work at a time (see `tiles.py`), None for all at once.
        halfway: x has been through the first half already, and is not overwritten.
        recompute: each tile's activations are computed again in the backward pass instead of being stored.
        sequence: who has which part of x, which then comes in as columns and goes out as whole layers.
        """
        run = _recomputed if recompute else _at_once
        if not halfway:
            x = self._attend_parameters(x, rotations, rows, run, sequence)
        if context is None:
            return x
        attention = self.condition_attention
        keys = Keys(*attention.keys(context.tokens, rotations.key), context.mask)
        if torch.is_grad_enabled():
            return self._attend_condition(x, keys, rotations, rows, run)
        return self._attend_condition_into(x, keys, rotations, rows, overwrite=not halfway)

    def _attend_parameters(
        self,
        x: Tensor,
        rotations: BandRotations,
        rows: int | None,
        run: Callable[..., Tensor],
        sequence: Sequence,
    ) -> Tensor:
        between, within = self.between_layers, self.within_layers
        over_columns = columns(x.shape, rows)
        if not torch.is_grad_enabled():
            for tile in all_tiles(over_columns):
                between(x[tile], rotations.layer)
            for tile in all_tiles(whole_layers(x.shape, rows)):
                within(x[tile], rotations.token)
            return x
        x = map_tiles(x, over_columns, lambda part, _: run(between, part, rotations.layer), dim=2)
        x = sequence.to_layers(x, len(rotations.token.cos))
        over_layers = whole_layers(x.shape, rows)
        return map_tiles(x, over_layers, lambda part, _: run(within, part, rotations.token), dim=1)

    def _attend_condition(
        self,
        x: Tensor,
        keys: Keys,
        rotations: BandRotations,
        rows: int | None,
        run: Callable[..., Tensor],
    ) -> Tensor:
        def one(part: Tensor, tile: Tile) -> Tensor:
            rotation = rotations.query.part(tile.layers, tile.places)
            part_keys = keys if len(x) != len(keys.k) else keys.part(tile.batch)
            return run(self.to_condition, part, part_keys, rotation)

        return map_tiles(x, whole_layers(x.shape, rows), one, dim=1)

    def _attend_condition_into(
        self, x: Tensor, keys: Keys, rotations: BandRotations, rows: int | None, overwrite: bool
    ) -> Tensor:
        batch = len(keys.k)
        shared = len(x) != batch
        out = x if overwrite and not shared else x.new_empty(batch, *x.shape[1:])
        for layer_tile in all_tiles(whole_layers(out.shape, rows)):
            n_layers = layer_tile.layers.stop - layer_tile.layers.start
            # From here on every position is for itself: even one layer may be too much at once.
            at_once = x.shape[2] if rows is None else rows // n_layers
            for places in spans(x.shape[2], at_once):
                tile = layer_tile._replace(places=places)
                source = x[tile._replace(batch=slice(0, 1)) if shared else tile]
                rotation = rotations.query.part(tile.layers, tile.places)
                self.to_condition(source, keys.part(tile.batch), rotation, out[tile])
        return out

    def between_layers(self, x: Tensor, rotation: Rotation) -> Tensor:
        """x (b, L, p, D) plus what each position gathers from its place in all layers."""
        batch = len(x)
        each = self.layer_norm(x.transpose(1, 2)).flatten(0, 1)  # (b p) L D
        attended = self.layer_attention(each, rotation)
        return _add(x, attended.unflatten(0, (batch, x.shape[2])).transpose(1, 2))

    def within_layers(self, x: Tensor, rotation: Rotation) -> Tensor:
        """x (b, l, P, D) plus what each position gathers from its layer."""
        each = self.token_norm(x).flatten(0, 1)  # (b l) P D
        return _add(x, self.token_attention(each, rotation).view_as(x))

    def to_condition(self, x: Tensor, keys: Keys, rotation: Rotation, out: Tensor | None = None) -> Tensor:
        """x (b or 1, l, p, D) plus what each position gathers from the condition, then the feed-forward.

        out: (b, l, p, D), x itself or other memory, where the result goes when no gradient is recorded.
        """
        each = self.condition_norm(x).flatten(1, 2)  # (b or 1) (l p) D
        attended = self.condition_attention(each, keys.k, keys.v, keys.mask, rotation)
        x = _add(x, attended.unflatten(1, x.shape[1:3]), out)  # a batch of one grows to b here
        del each, attended
        return _add(x, self.feed_forward(self.feed_forward_norm(x)), out)


def _add(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    if torch.is_grad_enabled():
        return x + y
    return x.add_(y) if out is None else torch.add(x, y, out=out)


def _at_once(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return function(*args)


def _recomputed(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return checkpoint(function, *args, use_reentrant=False)
