"""The times of sampling and training of a rectified flow, as its diffusers scheduler's config has them.

Large images need more noise for the same destruction, so times are shifted towards 1 with the number of
tokens (FLUX: "dynamic shifting"). Time runs from 1 (noise) to 0 (image).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .sampling import simple_sigmas

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler


def shift_time(time: Tensor, shift: float) -> Tensor:
    """Times in [0, 1] moved towards noise where `shift` is more than 1 (arXiv 2403.03206, 5.3.2)."""
    return shift * time / (1 + (shift - 1) * time)


@dataclass(frozen=True)
class FlowSchedule:
    """A `FlowMatchEulerDiscreteScheduler` by its config."""

    config: Mapping[str, Any] = field(default_factory=dict)

    def sigmas(self, steps: int, n_tokens: int) -> list[float]:
        """The `steps` + 1 times from 1 to 0 that the pipelines sample an image of `n_tokens` at."""
        simple_sigmas(steps)  # refuses numbers of steps that cannot be
        scheduler = self._scheduler()
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=self._mu(n_tokens))
        return scheduler.sigmas.tolist()

    def shift(self, time: Tensor, n_tokens: int) -> Tensor:
        """Times in (0, 1) as drawn for training, such as logit-normal ones, to where this model learns."""
        scheduler = self._scheduler()
        if scheduler.config.use_dynamic_shifting:
            return scheduler.time_shift(self._mu(n_tokens), 1.0, time)
        return shift_time(time, scheduler.shift)

    def _scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler.from_config(dict(self.config))

    def _mu(self, n_tokens: int) -> float:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        ends = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        return calculate_shift(n_tokens, *(self._scheduler().config[name] for name in ends))
