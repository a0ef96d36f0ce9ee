"""Learning through a frozen backbone, by the diffusion loss alone (paper 3.6).

Shapes: C conditions of a team, R noise levels of each, rows of the backbone C * R, Z latent channels,
h x w latents.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..apply import Attachment, attach
from ..conditions import Condition
from ..errors import HywuError, require_positive
from ..lora import Adapter
from .adaptation import Adaptation, Generated
from .loop import Task
from .objective import flow_matching_loss, update_power
from .share import Dealing


class Inputs(Protocol):
    """What a backbone reads besides the noisy latents: references, text; a batch of it."""

    def __getitem__(self, rows: list[int]) -> Inputs:
        """Those of some rows, in this order."""
        ...


@dataclass(frozen=True)
class Edits:
    """C edits: what tells them apart, what they shall become, and what the backbone reads."""

    condition: Condition  # (C, S, D)
    tasks: Tensor  # (C,)
    target: Tensor  # (C, Z, h, w)
    inputs: Inputs


@dataclass(frozen=True)
class AdaptingConfig:
    """What every task that adapts a frozen backbone can be told."""

    noise_levels: int = 1  # R: times drawn for each generated LoRA, so that one generation serves several
    prompt_dropout: float = 0.0  # how often the instruction is left out
    strength_penalty: float = 0.0  # weight of `objective.update_power` in the loss

    def __post_init__(self) -> None:
        require_positive(self, "noise_levels")
        if not 0 <= self.prompt_dropout <= 1:
            raise HywuError(f"prompt_dropout is {self.prompt_dropout}; it must be between 0 and 1.")
        if not 0 <= self.strength_penalty < math.inf:
            raise HywuError(
                f"strength_penalty is {self.strength_penalty}; it must be a number that is not negative."
            )


class AdaptingTask(Task):
    """Only the adaptation moves, by default a generator; gradients reach it through the LoRA it wrote.

    A step's rows are C conditions with R noise levels each, so that one generated LoRA serves several.
    """

    def __init__(
        self,
        name: str,
        transformer: nn.Module,
        adaptation: Adaptation,
        config: AdaptingConfig,
        compiled: bool = False,
    ) -> None:
        """`transformer` is what the adaptation bends; `compiled` runs a generator through torch.compile."""
        self.name, self.transformer, self.adaptation = name, transformer, adaptation
        self.module = adaptation.module
        self.config = config
        if self.module is not transformer:
            self.frozen = (transformer,)
        if compiled and isinstance(adaptation, Generated):
            adaptation.write = torch.compile(self.module)
        self._attachment: Attachment | None = None

    @property
    def sharded(self) -> tuple[nn.Module, ...]:
        """The backbone where it is trained itself, else the generator, if there is one."""
        return (self.transformer,) if self.module is self.transformer else super().sharded

    @abstractmethod
    def velocity(self, x: Tensor, time: Tensor, inputs: Any) -> Tensor:
        """The backbone at x (rows, Z, h, w) and time (rows,): (rows, Z, h, w)."""

    @abstractmethod
    def tokens_per_row(self, batch: Edits) -> int:
        """Tokens that the backbone computes for a row: text, noisy and reference ones."""

    def shifted(self, time: Tensor, target: Tensor) -> Tensor:
        """Times drawn for latents of this size, moved to where the backbone learns; by default as drawn."""
        return time

    def conditions(self, rows: int) -> int:
        """C, of all processes, for so many rows of the backbone; HywuError where the last has fewer."""
        Dealing(repeats=self.config.noise_levels).check(rows)
        return rows // self.config.noise_levels

    def loss(self, batch: Edits, generator: torch.Generator) -> Tensor:
        """Flow matching through the LoRA made for each condition, plus what holds the LoRA down."""
        adapter = self.adaptation.adapter(batch.condition, batch.tasks)
        adapters, rows = self.share.pairs(len(batch.target), self.config.noise_levels)
        if adapter is not None and adapter.batch == len(batch.target):
            adapter = adapter.select(adapters)
        self._adapt(adapter)
        inputs = batch.inputs[rows]
        loss = flow_matching_loss(
            lambda x, time: self.velocity(x, time, inputs),
            batch.target[rows],
            generator,
            self.share,
            lambda time: self.shifted(time, batch.target),
        )
        self.scalars = {"tokens_per_row": torch.tensor(float(self.tokens_per_row(batch)))}
        if adapter is None or not self.config.strength_penalty:
            return loss
        power = update_power(adapter)
        self.scalars |= {"flow_loss": loss.detach(), "update_power": power.detach()}
        return loss + self.config.strength_penalty * power

    def _adapt(self, adapter: Adapter | None) -> None:
        """Put the adapter on. It stays until the next one: the backward pass may run the backbone again."""
        if adapter is None:
            return
        if self._attachment is None:
            self._attachment = self.attach(adapter)
        else:
            self._attachment.swap(adapter)

    def attach(self, adapter: Adapter) -> Attachment:
        """The adapter on the backbone."""
        return attach(self.transformer, adapter)

    def release(self) -> None:
        """Take the last adapter off, before the backbone is used for anything else."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None
