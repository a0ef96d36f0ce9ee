"""Flow matching: the one loss of the embedded backbone and of the generator on top of it (paper 3.6).

Shapes: B batch, Z latent channels, h x w latents.

x_t = (1 - t) * image + t * noise and the model predicts v = noise - image; the convention of FLUX.1 and of
`hywu_core.backbones.sampling`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..lora import Adapter
from ..lora.algebra import square_norms
from .share import Share

UNIFORM_SHARE = 0.5  # of the times; the rest is logit-normal(0, 1), denser in the middle


def sample_times(n: int, generator: torch.Generator) -> Tensor:
    """Times (n,) in (0, 1)."""
    device = generator.device
    uniform = torch.rand(n, generator=generator, device=device)
    middling = torch.randn(n, generator=generator, device=device).sigmoid()
    pick = torch.rand(n, generator=generator, device=device) < UNIFORM_SHARE
    return torch.where(pick, uniform, middling)


def flow_matching_loss(
    velocity: Callable[[Tensor, Tensor], Tensor],
    target: Tensor,
    generator: torch.Generator,
    share: Share | None = None,
    shift: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean squared error of `velocity(x_t, t)` at random times, for clean latents `target` (B, Z, h, w).

    share: `target` is this share's rows of a larger batch, for all of which times and noise are drawn.
    shift: moves the times drawn to where a backbone learns.
    """
    share = share or Share()
    whole = len(target) * share.world
    rows = share.rows(whole)
    time = sample_times(whole, generator)[rows]
    if shift is not None:
        time = shift(time)
    noise = torch.randn((whole, *target.shape[1:]), generator=generator, device=target.device)[rows]
    t = time.view(-1, 1, 1, 1)
    predicted = velocity((1 - t) * target + t * noise, time)
    return F.mse_loss(predicted.float(), noise - target)


def update_power(adapter: Adapter) -> Tensor:
    """How strongly an adapter acts: what `strength_penalty` holds down (paper R6). A scalar, differentiable.

    The mean square of what the update adds to a target's output for inputs of unit variance, averaged over
    adapters and targets: ||scale * B A||^2 / d_out.
    """
    squares = square_norms(adapter)
    return torch.stack([squares[name].mean() / B.shape[-2] for name, (_, B) in adapter.items()]).mean()
