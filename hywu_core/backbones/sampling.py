"""Euler integration of a rectified flow, step for step as ComfyUI's KSampler with `euler` and `simple`.

Shapes: B batch, Z latent channels, h x w latents. Time runs from 1 (noise) to 0 (image):
x_t = (1 - t) * image + t * noise, velocity v = noise - image = dx/dt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import HywuError

_TRAIN_STEPS = 1000  # ComfyUI tabulates sigmas at t = 1/1000 .. 1000/1000 and `simple` picks from that table


def simple_sigmas(steps: int) -> list[float]:
    """The `steps` + 1 times from 1 to 0 of ComfyUI's `simple` scheduler for a flow model with shift 1."""
    if not 1 <= steps <= _TRAIN_STEPS:
        raise HywuError(f"The number of sampling steps is {steps}; it must be between 1 and {_TRAIN_STEPS}.")
    stride = _TRAIN_STEPS / steps
    return [(_TRAIN_STEPS - int(i * stride)) / _TRAIN_STEPS for i in range(steps)] + [0.0]


def seeded_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal float32 noise drawn on the CPU, the same on every machine and in ComfyUI."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


@torch.no_grad()
def euler(
    velocity: Callable[[Tensor, float], Tensor],
    noise: Tensor,
    steps: int | Sequence[float],
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Integrate from noise (B, Z, h, w) at t = 1 to the image's latents; `on_step(done)` after every step.

    steps: how many of `simple_sigmas`, or the times themselves, falling to 0.
    """
    x, sigmas = noise, simple_sigmas(steps) if isinstance(steps, int) else steps
    for step, (now, following) in enumerate(pairwise(sigmas)):
        x = x + velocity(x, now) * (following - now)
        if on_step is not None:
            on_step(step + 1)
    return x
