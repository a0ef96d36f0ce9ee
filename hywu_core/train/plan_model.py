"""From sizes to a plan: bytes, FLOP, traffic and time of one step, of each rank.

The letters are those of `plan_arrangement.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .plan_arrangement import BACKBONE_BYTES, Arrangement, Shares
from .plan_devices import EFFICIENCY, RESERVED, Accelerator
from .plan_sizes import TrainSize
from .plan_step import Rehearsal, Weights
from .plan_traffic import Traffic, traffic


@dataclass(frozen=True)
class TrainPlan:
    """The plan of a step, of each rank; plain data.

    parameters: numbers of weights.  memory: bytes by part; they sum to `peak`, what is needed.
    flop: of a step.  traffic: bytes sent (and as many received) in a step.  seconds: of a step.
    """

    size: str
    arrangement: Arrangement
    device: str
    efficiency: float
    batch_size: int
    parameters: Mapping[str, int]
    memory: Mapping[str, float]
    available: float
    flop: Mapping[str, float]
    traffic: Mapping[str, float]
    seconds: Mapping[str, float]
    assumptions: tuple[str, ...] = field(default=())

    @property
    def peak(self) -> float:
        """Bytes at the worst moment."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether they are there."""
        return self.peak <= self.available

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"peak": self.peak, "fits": self.fits}


def plan(
    size: TrainSize,
    how: Arrangement,
    device: Accelerator,
    efficiency: float = EFFICIENCY,
    rehearsal: Rehearsal | None = None,
    reserved: float = RESERVED,
) -> TrainPlan:
    """The plan of a size, arranged so, on such devices."""
    shares, batch = Shares.of(size, how)
    seen = rehearsal or Rehearsal.of(size, shares, how.numbers)
    flop = {
        "generator forward": seen.generator.forward / how.sequence,
        "generator backward": seen.generator.backward / how.sequence,
        "backbone forward": seen.backbone.forward / how.backbone_sequence,
        "backbone backward": seen.backbone.backward / how.backbone_sequence,
    }
    flop = {name: how.accumulate * value for name, value in flop.items()}
    sent = traffic(size, how, shares, seen.weights)
    weights = seen.weights
    return TrainPlan(
        size.name,
        how,
        device.name,
        efficiency,
        batch,
        {
            "generator": weights.generator,
            "backbone": weights.backbone,
            "generated LoRA": size.spec.n_parameters,
        },
        {**_memory(size, how, shares, seen), "reserved": reserved},
        device.memory,
        flop,
        sent.to_dict(),
        _seconds(how, weights, sum(flop.values()), sent, device, efficiency),
        (*size.assumptions, *size.backbone.assumptions),
    )


def _memory(size: TrainSize, how: Arrangement, shares: Shares, seen: Rehearsal) -> dict[str, float]:
    weight, gradient, moments = how.state_bytes
    n, block = seen.weights.generator, seen.weights.generator_block
    gradients = n * gradient / how.shard
    frozen = seen.weights.linears * BACKBONE_BYTES[how.backbone]
    frozen += (seen.weights.backbone - seen.weights.linears) * how.numbers.backbone.itemsize
    lora = shares.adapters * size.spec.n_parameters * how.numbers.written.itemsize
    written = shares.conditions * size.spec.n_parameters * how.numbers.written.itemsize
    generator = (seen.generator.kept - written) / how.sequence
    backbone, working = (each / how.backbone_sequence for each in (seen.backbone.kept, seen.backbone.working))
    going_back = seen.generator.working / how.sequence
    gathered = gathered_grad = gathered_frozen = 0
    if how.shard > 1:  # the block in work and the one that is fetched meanwhile
        gathered = 2 * block * how.numbers.weights.itemsize
        gathered_grad = block * how.numbers.weights.itemsize
    if how.frozen_shard > 1:
        gathered_frozen = 2 * seen.weights.backbone_block * BACKBONE_BYTES[how.backbone]
    if how.quantised:  # one linear at a time, at most a third of a block
        working += seen.weights.backbone_block / 3 * how.numbers.backbone.itemsize
    # Gradients of the generator grow while its activations go; with micro-batches they are there all along.
    there = gradients if how.accumulate > 1 else 0.0
    moments_of_step = {
        "backbone": (backbone, working + gathered_frozen, there),
        "generator, begin": (0.0, going_back + lora + gathered + gathered_grad, there),
        "generator, end": (-generator, going_back + lora + gathered + gathered_grad, gradients),
    }
    worst = max(moments_of_step.values(), key=sum)
    return {
        "generator weights": n * weight / how.shard,
        "AdamW moments": n * moments / how.shard,
        "moving average": n * how.average_bytes / how.shard,
        "gradients": worst[2],
        "backbone weights": frozen / how.frozen_shard,
        "generated LoRAs": lora,
        "generator activations": generator + min(worst[0], 0.0),
        "backbone activations": max(worst[0], 0.0),
        "working": worst[1],
    }


def _seconds(
    how: Arrangement, weights: Weights, flop: float, sent: Traffic, device: Accelerator, efficiency: float
) -> dict[str, float]:
    compute = flop / (device.flops[how.precision] * efficiency)
    beside, between = sent.seconds(device)
    kept = sum(how.state_bytes) + how.average_bytes
    touched = weights.generator / how.shard * 2 * kept  # read and written again
    update = touched / device.memory_bandwidth
    return {
        "compute": compute,
        "traffic beside it": beside,
        "traffic between": between,
        "update": update,
        "step": max(compute, beside) + between + update,
    }
