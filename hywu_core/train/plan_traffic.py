"""Bytes that a rank sends in one step, and how long that takes.

Rings: to gather or to scatter W bytes over S ranks, each sends W (S - 1) / S; to add up and spread, twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..tokens import n_tokens
from .plan_arrangement import BACKBONE_BYTES, Arrangement, Shares
from .plan_devices import PER_NODE, Accelerator
from .plan_sizes import TrainSize
from .plan_step import Weights


@dataclass(frozen=True)
class Flow:
    """Bytes sent within groups of `ranks` neighbours (or of as many, `apart` from each other).

    hidden: done while something is computed, as FSDP2 fetches a block during the one before.
    """

    sent: float
    ranks: int
    hidden: bool

    def seconds(self, device: Accelerator) -> float:
        """Over the link inside a node, or the network where the group is larger than one."""
        return self.sent / (device.link if self.ranks <= PER_NODE else device.network)


@dataclass(frozen=True)
class Traffic:
    """All flows of a step by name."""

    flows: Mapping[str, Flow]

    def to_dict(self) -> dict[str, float]:
        """Bytes by name."""
        return {name: flow.sent for name, flow in self.flows.items()}

    def seconds(self, device: Accelerator) -> tuple[float, float]:
        """Of what is hidden behind the computation, and of what it waits for."""
        hidden, waited = (
            sum(flow.seconds(device) for flow in self.flows.values() if flow.hidden is kind)
            for kind in (True, False)
        )
        return hidden, waited


def traffic(size: TrainSize, how: Arrangement, shares: Shares, weights: Weights) -> Traffic:
    """What a rank sends in one step."""
    computes = 2 if how.precision == "bf16" else 4
    passes = how.accumulate
    sharded, copies = how.shard, how.gpus // how.shard
    gathered, frozen = weights.generator * computes, weights.backbone * BACKBONE_BYTES[how.backbone]
    reduced = weights.generator * 4  # `sharding.py` adds gradients up in float32
    runs = 3 if how.checkpointing else 2  # forward, backward, and the forward that is repeated
    # Over its layers, then within them: two switches in each block, of the rank's own share of x.
    positions = sum(
        band.n_layers * sum(n_tokens(band, size.layout, size.spec.rank)) * size.spec.rank
        for band in size.spec.bands
    )
    x = shares.conditions * positions * size.generator.d_row * how.numbers.written.itemsize / how.sequence
    switches = 2 * size.generator.n_layers * runs * x
    adapters = shares.conditions * size.spec.n_parameters * how.numbers.written.itemsize
    # Queries, keys, values and what they gather, of the rank's own tokens, in each block.
    tokens = shares.rows * size.backbone.n_tokens * size.backbone.width * computes / how.backbone_sequence
    heads = 4 * sum(size.backbone.blocks.values()) * runs * tokens
    flows = {
        "gather generator (FSDP)": Flow(2 * passes * _others(sharded) * gathered, sharded, True),
        "reduce gradients (FSDP)": Flow(passes * _others(sharded) * reduced, sharded, True),
        "gather backbone (FSDP)": Flow(
            2 * passes * _others(how.frozen_shard) * frozen, how.frozen_shard, True
        ),
        "average gradients": Flow(
            2 * _others(copies) * reduced / sharded, how.gpus if copies > 1 else 1, True
        ),
        "generator sequence (DSP)": Flow(passes * _others(how.sequence) * switches, how.sequence, False),
        "share adapters (DSP)": Flow(2 * passes * _others(how.sequence) * adapters, how.sequence, False),
        "backbone sequence (Ulysses)": Flow(
            passes * _others(how.backbone_sequence) * heads, how.backbone_sequence, False
        ),
    }
    return Traffic({name: flow for name, flow in flows.items() if flow.sent})


def _others(ranks: int) -> float:
    return (ranks - 1) / ranks
