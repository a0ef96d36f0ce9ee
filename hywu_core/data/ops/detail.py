"""Detail: sharpness, texture and edges. x is (B, 3, H, W) in [0, 1]; lengths are parts of the short side."""

import torch
from torch import Tensor

from .kernels import (
    blurred,
    colour,
    coordinates,
    filtered,
    gradient,
    luma,
    mix,
    short_side,
    smoothstep,
    trail,
    warp,
)

FOG = (0.86, 0.89, 0.92)
FOG_TRANSMISSION = 0.35


def blur(x: Tensor) -> Tensor:
    """Out of focus: Gaussian, sigma 1/20, of light instead of its gamma code: lights spread as in a lens."""
    return blurred(x**3, 1 / 20).clamp(0, 1) ** (1 / 3)


def defocus(x: Tensor) -> Tensor:
    """The blur that deblur undoes: Gaussian, sigma 1/48."""
    return blurred(x, 1 / 48).clamp(0, 1)


def sharpen(x: Tensor) -> Tensor:
    """Unsharp masks at two scales: crisp edges and strong local contrast."""
    fine, middle = blurred(x, 1 / 160), blurred(x, 1 / 24)
    return (x + 2 * (x - fine) + 1.8 * (fine - middle)).clamp(0, 1)


def glow(x: Tensor) -> Tensor:
    """Bloom: the lights, blurred, are screened over a slightly darker picture."""
    return 1 - (1 - x**1.2) * (1 - blurred(x.square(), 1 / 16) ** 0.8).clamp(0, 1)


def haze(x: Tensor) -> Tensor:
    """Fog of constant depth: x t + fog (1 - t), the scattering model of dehazing (Koschmieder)."""
    return mix(colour(FOG, x), x, FOG_TRANSMISSION)


def dehaze(x: Tensor) -> Tensor:
    """The inverse of haze, clipped."""
    fog = colour(FOG, x)
    return (fog + (x - fog) / FOG_TRANSMISSION).clamp(0, 1)


def grain(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Independent Gaussian noise of standard deviation 0.12; seed 0 where no generator is given."""
    if generator is None:
        generator = torch.Generator(x.device).manual_seed(0)
    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    return (x + 0.12 * noise).clamp(0, 1)


def pixelate(x: Tensor) -> Tensor:
    """Mean of square blocks, 16 across the short side."""

    def blocks(n: int) -> Tensor:
        count = max(1, round(n * 16 / short_side(x)))
        block = torch.div(torch.arange(n, device=x.device) * count, n, rounding_mode="floor")
        same = (block[:, None] == block[None, :]).float()
        return same / same.sum(1, keepdim=True)

    return filtered(x, blocks).clamp(0, 1)


def motion_horizontal(x: Tensor) -> Tensor:
    """Everything leaves a trail to the right."""
    return (x @ trail(x.shape[-1], short_side(x) / 8, x.device).to(x).mT).clamp(0, 1)


def motion_vertical(x: Tensor) -> Tensor:
    """Everything leaves a trail downwards."""
    return (trail(x.shape[-2], short_side(x) / 8, x.device).to(x) @ x).clamp(0, 1)


def zoom_blur(x: Tensor) -> Tensor:
    """Mean of 16 magnifications from 1 to 1.6 (each pass doubles their number)."""
    v, u = coordinates(x)
    for power in (1, 2, 4, 8):
        shrink = 1.6 ** (-power / 15)
        x = mix(x, warp(x, u * shrink, v * shrink), 0.5)
    return x.clamp(0, 1)


def emboss(x: Tensor) -> Tensor:
    """Grey relief, lit from the top left."""
    dx, dy = gradient(blurred(luma(x), 1 / 128))
    return (0.5 + 0.5 * torch.tanh(0.1 * (dx + dy))).expand_as(x)


def sketch(x: Tensor) -> Tensor:
    """Pencil lines on white: the luma divided by its surroundings (colour dodge)."""
    light = blurred(luma(x), 1 / 200)
    ratio = (light + 0.08) / (blurred(light, 1 / 30) + 0.08)
    return smoothstep(0.2, 1.0, ratio).expand_as(x)


def neon_edges(x: Tensor) -> Tensor:
    """The strongest edges of this picture, in its own colours made vivid, glowing on black."""
    dx, dy = gradient(blurred(luma(x), 1 / 100))
    strength = (dx.square() + dy.square()).sqrt()
    tube = smoothstep(0.8, 3.0, strength / (strength.mean((2, 3), keepdim=True) + 0.3))
    hue = blurred(x, 1 / 50).clamp_min(0.02)
    return ((hue / hue.amax(1, keepdim=True)) ** 3 * (tube + 0.6 * blurred(tube, 1 / 40))).clamp(0, 1)


def cartoon(x: Tensor) -> Tensor:
    """Flat, saturated colours and dark outlines."""
    flat = edge_preserving(edge_preserving(x))
    dx, dy = gradient(blurred(luma(flat), 1 / 128))
    outline = smoothstep(3.5, 7.0, (dx.square() + dy.square()).sqrt())
    light = luma(flat)
    steps = (light * 4).round() / 4
    return (mix(light, flat, 1.8) + steps - light).clamp(0, 1) * (1 - 0.9 * outline)


def edge_preserving(x: Tensor, sigma: float = 1 / 40, epsilon: float = 0.01) -> Tensor:
    """Guided filter with the picture's luma as guide (He, Sun and Tang 2010), Gaussian windows."""
    guide = luma(x)
    mean_x, mean_guide = blurred(x, sigma), blurred(guide, sigma)
    covariance = blurred(guide * x, sigma) - mean_guide * mean_x
    variance = blurred(guide * guide, sigma) - mean_guide.square()
    slope = covariance / (variance + epsilon)
    return blurred(slope, sigma) * guide + blurred(mean_x - slope * mean_guide, sigma)


def tilt_shift(x: Tensor) -> Tensor:
    """A sharp band in the middle; top and bottom out of focus; the lively colours of a miniature."""
    v, _ = coordinates(x)
    vivid = mix(luma(x), x, 1.5).clamp(0, 1)
    return mix(vivid, blurred(vivid, 1 / 24), smoothstep(0.2, 0.6, v.abs())).clamp(0, 1)
