"""Edits of a user's data set that are not trained on: how well they go with and without what was learned.

Shapes: Z latent channels, h x w latents, K noise levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbones.sampling import seeded_noise
from ..errors import HywuError
from .shown import Shown

if TYPE_CHECKING:
    from .adapting import Edits
    from .paired import PairedTask

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # K: from nearly clean to nearly noise
COLUMNS = ("source", "frozen base", "adapted", "target")


class HeldOut:
    """The same edits again and again, each with noise of its own that stays the same."""

    def __init__(self, task: PairedTask, indices: Sequence[int], decode: Callable[[Tensor], Tensor]) -> None:
        """`decode`: latents (1, Z, h, w) to pictures (1, 3, H, W)."""
        self.task, self.indices, self.decode = task, tuple(indices), decode
        self._last: Shown | None = None
        if task.adaptation.kind == "sft":
            _ = self._base  # now: once the backbone itself moves, there is no frozen base any more

    @torch.no_grad()
    def show(self) -> Shown:
        """Losses and pictures as things are now."""
        rows, losses = [], []
        for place, (_, before) in enumerate(self._base):
            loss, picture = self._measure(place, adapted=True)
            losses.append(loss)
            source, target = self._given[place]
            prompt = self.task.edits.data[self.indices[place]].prompt
            rows.append((prompt, (source, before, picture, target)))
        base = fmean(loss for loss, _ in self._base)
        scalars = {"held_out_loss": fmean(losses), "held_out_loss_base": base}
        self._last = Shown(scalars, COLUMNS, rows)
        return self._last

    def sentence(self) -> str:
        """What was reached when they were last shown."""
        if self._last is None:
            raise HywuError("Nothing was shown yet.")
        now, base = (self._last.scalars[name] for name in ("held_out_loss", "held_out_loss_base"))
        which = "held-out edits" if self.task.shown else "edits (of too few to hold any out)"
        return (
            f"On {len(self.indices)} {which} the flow-matching loss is {now:.4f} with what was learned and "
            f"{base:.4f} with the frozen base: {100 * (now / base - 1):+.1f} %."
        )

    @cached_property
    def _base(self) -> list[tuple[float, Tensor]]:
        """Loss and picture of each by the frozen base alone."""
        with torch.no_grad():
            return [self._measure(place, adapted=False) for place in range(len(self.indices))]

    @cached_property
    def _given(self) -> list[tuple[Tensor, Tensor]]:
        """Source and target of each, as the autoencoder gives them back."""
        pictures = []
        for index in self.indices:
            edit = self.task.read(index)
            source = edit.sample.controls[0] if edit.sample.controls else torch.zeros_like(edit.target)
            pictures.append((self._decoded(source), self._decoded(edit.target)))
        return pictures

    def _measure(self, place: int, adapted: bool) -> tuple[float, Tensor]:
        """The loss, averaged over K noise levels, and the picture (3, H, W) of one of the edits."""
        index, device = self.indices[place], self.task.device
        edit: Edits = self.task.collate([self.task.read(index)], [index])
        target, inputs = edit.target.to(device, torch.float32), edit.inputs.to(device)
        noise = seeded_noise(target.shape, place).to(device)
        with self._adapted(edit) if adapted else nullcontext(), self._computing():
            losses = []
            for t in TIMES:
                time = torch.full((1,), t, device=device)
                velocity = self.task.velocity((1 - t) * target + t * noise, time, inputs)
                losses.append(F.mse_loss(velocity.float(), noise - target).item())
            latents = self.task.backbone.sample(inputs, noise, self.task.config.sample_steps)
        return fmean(losses), self._decoded(latents)

    def _computing(self) -> AbstractContextManager:
        """A backbone that learns is kept in float32, and computes as in training; in pieces it must."""
        half = self.task.half and self.task.adaptation.kind == "sft"
        return torch.autocast(self.task.device.type, torch.bfloat16) if half else nullcontext()

    def _adapted(self, edit: Edits) -> AbstractContextManager:
        device = self.task.device
        adapter = self.task.adaptation.adapter(edit.condition.to(device), edit.tasks.to(device))
        return nullcontext() if adapter is None else self.task.attach(adapter)

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.decode(latents)[0].float().cpu()
