"""Colour: casts, channels, monochromes and colour maps. x is (B, 3, H, W) in [0, 1]."""

import torch
from torch import Tensor

from .kernels import colour, coordinates, luma, mix, smoothstep


def warm(x: Tensor) -> Tensor:
    """White balance towards amber."""
    return (x * colour((1.3, 1.0, 0.4), x)).clamp(0, 1)


def cool(x: Tensor) -> Tensor:
    """White balance towards blue."""
    return (x * colour((0.5, 0.95, 1.4), x)).clamp(0, 1)


def saturate(x: Tensor) -> Tensor:
    """Three times the distance from grey."""
    return mix(luma(x), x, 3.0).clamp(0, 1)


def mute(x: Tensor) -> Tensor:
    """Pastel: 35 percent of the distance from grey, and tones drawn towards a light grey."""
    return (0.62 + 0.6 * (mix(luma(x), x, 0.35) - 0.62)).clamp(0, 1)


def greyscale(x: Tensor) -> Tensor:
    """Black-and-white film: luma through a gentle S-curve."""
    return monochrome(x).expand_as(x)


def monochrome(x: Tensor) -> Tensor:
    """The light of a black-and-white print (B, 1, H, W)."""
    return smoothstep(0, 1, luma(x))


def sepia(x: Tensor) -> Tensor:
    """Brown monochrome."""
    return gradient_map(luma(x), ((0.12, 0.05, 0.0), (0.62, 0.42, 0.2), (1.0, 0.9, 0.68)))


def cyanotype(x: Tensor) -> Tensor:
    """Prussian blue for black, paper white for white."""
    return gradient_map(luma(x), ((0.0, 0.08, 0.3), (0.15, 0.42, 0.72), (0.92, 0.97, 1.0)))


def red_tint(x: Tensor) -> Tensor:
    """As if seen through red glass."""
    return _tint(x, (1.0, 0.12, 0.12))


def cyan_tint(x: Tensor) -> Tensor:
    """As if seen through cyan glass."""
    return _tint(x, (0.0, 0.9, 0.9))


def green_tint(x: Tensor) -> Tensor:
    """As if seen through green glass."""
    return _tint(x, (0.1, 0.95, 0.1))


def magenta_tint(x: Tensor) -> Tensor:
    """As if seen through magenta glass."""
    return _tint(x, (1.0, 0.1, 0.9))


def _tint(x: Tensor, rgb: tuple[float, float, float]) -> Tensor:
    """Half of the picture's own colour is replaced by its light in the colour of the glass."""
    light = luma(x)
    return mix(x, (0.25 + 0.9 * light) * colour(rgb, x), 0.65).clamp(0, 1)


def swap_red_blue(x: Tensor) -> Tensor:
    """Exchange the red and the blue channel."""
    return x[:, [2, 1, 0]]


def swap_red_green(x: Tensor) -> Tensor:
    """Exchange the red and the green channel."""
    return x[:, [1, 0, 2]]


def hue_opposite(x: Tensor) -> Tensor:
    """Every colour becomes its complement of the same luma: the distance from grey changes sign."""
    return mix(luma(x), x, -1.4).clamp(0, 1)


def thermal(x: Tensor) -> Tensor:
    """False colours of a heat camera."""
    navy, violet, red = (0.0, 0.0, 0.25), (0.35, 0.0, 0.6), (0.85, 0.1, 0.25)
    orange, yellow, white = (1.0, 0.5, 0.0), (1.0, 0.9, 0.1), (1.0, 1.0, 0.85)
    return gradient_map(luma(x), (navy, violet, red, orange, yellow, white))


def duotone(x: Tensor) -> Tensor:
    """Two inks: purple shadows, yellow highlights."""
    return gradient_map(luma(x), ((0.3, 0.0, 0.5), (1.0, 0.95, 0.15)))


def gradient_map(light: Tensor, stops: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Light (B, 1, H, W) in [0, 1] to the colour between evenly spaced stops: (B, 3, H, W)."""
    position = light.clamp(0, 1) * (len(stops) - 1)
    mapped = sum((1 - (position - i).abs()).clamp_min(0) * colour(rgb, light) for i, rgb in enumerate(stops))
    return mapped.clamp(0, 1)


def rainbow(x: Tensor) -> Tensor:
    """The spectrum from red on the left to violet on the right, laid over the picture."""
    _, u = coordinates(x)
    hue = (u + 1) / 2 * 0.8
    thirds = torch.tensor([0.0, 1 / 3, 2 / 3], dtype=x.dtype, device=x.device).view(3, 1, 1)
    distance = (hue - thirds).abs()
    spectrum = (2 - 6 * torch.minimum(distance, 1 - distance)).clamp(0, 1)
    return mix(x, spectrum * (0.35 + 0.65 * luma(x)), 0.75).clamp(0, 1)


def night(x: Tensor) -> Tensor:
    """Day for night: dark, bluish, little colour."""
    moonlight, sky = colour((0.16, 0.26, 0.55), x), colour((0.0, 0.01, 0.07), x)
    return (mix(luma(x), x, 0.4) ** 1.8 * moonlight + sky).clamp(0, 1)


def sunset(x: Tensor) -> Tensor:
    """Evening light, purple at the top and orange at the bottom."""
    v, _ = coordinates(x)
    glow = mix(colour((0.5, 0.1, 0.6), x), colour((1.0, 0.5, 0.05), x), smoothstep(-1, 1, v))
    return (0.45 * x * (0.4 + glow) + 0.55 * glow * (0.3 + luma(x))).clamp(0, 1)


def grey_left(x: Tensor) -> Tensor:
    """No colour in the left half."""
    _, u = coordinates(x)
    return mix(monochrome(x), x, (u > 0).to(x)).clamp(0, 1)


def grey_right(x: Tensor) -> Tensor:
    """No colour in the right half."""
    _, u = coordinates(x)
    return mix(monochrome(x), x, (u < 0).to(x)).clamp(0, 1)
