"""Age and light: fading, vignettes and gradients. x is (B, 3, H, W) in [0, 1]."""

import torch
from torch import Tensor

from .kernels import colour, coordinates, luma, mix, smoothstep


def age(x: Tensor) -> Tensor:
    """An old print: yellowed, faded, brown towards the edges."""
    yellowed = mix(luma(x) * colour((1.0, 0.86, 0.62), x), x, 0.35)
    faded = 0.27 + 0.55 * yellowed + colour((0.1, 0.03, -0.08), x)
    return mix(faded, colour((0.34, 0.23, 0.12), x), 0.6 * _towards_edges(x)).clamp(0, 1)


def vignette(x: Tensor) -> Tensor:
    """Edges fall off into shadow."""
    return x * _falloff(x)


def remove_vignette(x: Tensor) -> Tensor:
    """The inverse of vignette, clipped."""
    return (x / _falloff(x)).clamp(0, 1)


def white_vignette(x: Tensor) -> Tensor:
    """Edges fade to white."""
    return mix(x, torch.ones_like(x), _towards_edges(x))


def darken_top(x: Tensor) -> Tensor:
    """Black at the top, as it is at the bottom."""
    return x * _ramp(-coordinates(x)[0])


def darken_bottom(x: Tensor) -> Tensor:
    """Black at the bottom, as it is at the top."""
    return x * _ramp(coordinates(x)[0])


def darken_left(x: Tensor) -> Tensor:
    """Black on the left, as it is on the right."""
    return x * _ramp(-coordinates(x)[1])


def darken_right(x: Tensor) -> Tensor:
    """Black on the right, as it is on the left."""
    return x * _ramp(coordinates(x)[1])


def _towards_edges(x: Tensor) -> Tensor:
    """0 in the centre, 1 near the edges (H, W)."""
    v, u = coordinates(x)
    return smoothstep(0.35, 1.1, (u * u + v * v).sqrt())


def _falloff(x: Tensor) -> Tensor:
    """The light that a bad lens lets through, 1 in the centre and 0.15 in the corners (H, W)."""
    return 1 - 0.85 * _towards_edges(x)


def _ramp(towards: Tensor) -> Tensor:
    """1 on the near side (-1), black on the far side (1)."""
    return 1 - smoothstep(-0.6, 0.8, towards)
