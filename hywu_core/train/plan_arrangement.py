"""How a run is set up over its ranks, and what each of them does of a step.

Shapes: N ranks; S over which weights are sharded (FSDP2), Q that share conditions (DSP), U that share a row
of the backbone (Ulysses).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ..errors import HywuError, require_positive
from .config import check_numbers
from .plan_sizes import TrainSize
from .share import Dealing, Share

# Bytes of a weight in a linear of a block; nf4 in blocks of 64 with a float32 maximum each (QLoRA).
BACKBONE_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0, "nf4": 0.5 + 4 / 64}
QUANTISED = ("int8", "fp8", "nf4")


@dataclass(frozen=True)
class Numbers:
    """How a step computes.

    weights: dtype of the generator's weights as they are used.  backbone: dtype the backbone computes in.
    autocast: whether products are in bfloat16 whatever the weights are.
    checkpointing: blocks are computed again in the backward pass instead of keeping their activations.
    """

    weights: torch.dtype = torch.float32
    backbone: torch.dtype = torch.float32
    autocast: bool = False
    checkpointing: bool = False

    def context(self, kind: str = "cpu") -> AbstractContextManager:
        """Autocast or nothing; on a device of that kind."""
        return torch.autocast(kind, torch.bfloat16) if self.autocast else nullcontext()

    @property
    def written(self) -> torch.dtype:
        """Dtype of the adapters."""
        return torch.bfloat16 if self.autocast else self.weights


@dataclass(frozen=True)
class Arrangement:
    """How a run is set up; `batch_size` counts rows of the whole step, over all ranks and micro-batches.

    shard: S.  sequence: Q.  backbone_sequence: U.  weights: "fp32" (master weights and moments) or "bf16"
    (all of it, rounded stochastically).  ema: decay of a moving average of the weights; 0: none.
    backbone: how the frozen weights are kept.
    """

    gpus: int = 1
    batch_size: int | None = None
    accumulate: int = 1
    shard: int = 1
    sequence: int = 1
    backbone_sequence: int = 1
    precision: str = "bf16"
    weights: str = "fp32"
    ema: float = 0.0
    backbone: str = "bf16"
    checkpointing: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "gpus", "batch_size", "accumulate", "shard", "sequence", "backbone_sequence")
        check_numbers(self.precision, self.weights, self.ema)
        if self.backbone not in BACKBONE_BYTES:
            raise HywuError(f"backbone is '{self.backbone}'; choose from {', '.join(BACKBONE_BYTES)}.")
        for name in ("shard", "sequence", "backbone_sequence"):
            if self.gpus % getattr(self, name):
                raise HywuError(f"{name} is {getattr(self, name)}, which does not divide {self.gpus} GPUs.")

    @property
    def quantised(self) -> bool:
        """Whether the frozen weights are kept in fewer bits than they are computed with."""
        return self.backbone in QUANTISED

    @property
    def frozen_shard(self) -> int:
        """Over how many ranks the frozen weights are cut up; `sharding.py` leaves quantised ones whole."""
        return 1 if self.quantised else self.shard

    @property
    def state_bytes(self) -> tuple[int, int, int]:
        """Bytes of a generator weight, of its gradient, and of AdamW's two moments of it."""
        one = 4 if self.weights == "fp32" else 2
        return one, one, 2 * one

    @property
    def average_bytes(self) -> int:
        """Bytes of a generator weight's moving average, which `average.py` keeps in float32."""
        return 4 if self.ema else 0

    @property
    def numbers(self) -> Numbers:
        """How this computes. Sharded weights are gathered in bfloat16, so nothing is left to cast."""
        bf16 = self.precision == "bf16"
        casts = bf16 and self.weights == "fp32" and self.gpus == 1
        return Numbers(
            torch.float32 if casts or not bf16 else torch.bfloat16,
            torch.float32 if self.backbone == "fp32" else torch.bfloat16,
            bf16,
            self.checkpointing,
        )


@dataclass(frozen=True)
class Shares:
    """What one rank does in one micro-batch: conditions its generator reads (with Q - 1 others), adapters it
    applies, rows of the backbone (with U - 1 others)."""

    conditions: int
    adapters: int
    rows: int

    @classmethod
    def of(cls, size: TrainSize, how: Arrangement) -> tuple[Shares, int]:
        """These, and the batch size; HywuError where rows cannot be dealt out."""
        groups, teams, repeats = (
            how.gpus // how.backbone_sequence,
            how.gpus // how.sequence,
            size.noise_levels,
        )
        dealing = Dealing(how.gpus, how.sequence, how.backbone_sequence, repeats, how.accumulate, "GPUs")
        batch = how.batch_size or dealing.unit * math.ceil(size.batch_size / dealing.unit)
        dealing.check(batch)
        rows = batch // how.accumulate // groups
        conditions = batch // how.accumulate // repeats // teams
        team = how.sequence // how.backbone_sequence
        members = (Share(rank, groups, team).pairs(conditions, repeats)[0] for rank in range(team))
        return cls(conditions, max(map(len, members)), rows), batch
