"""Geometry: flips, mirrors, zooms, warps, frames and bars. x is (B, 3, H, W) in [0, 1]."""

import torch
from torch import Tensor

from .kernels import coordinates, half_size, radial_warp, short_side, warp


def identity(x: Tensor) -> Tensor:
    """Leave it as it is."""
    return x.clone()


def flip_horizontal(x: Tensor) -> Tensor:
    """Left and right change places."""
    return x.flip(-1)


def flip_vertical(x: Tensor) -> Tensor:
    """Top and bottom change places."""
    return x.flip(-2)


def rotate_180(x: Tensor) -> Tensor:
    """Half a turn."""
    return x.flip(-2, -1)


def mirror_left(x: Tensor) -> Tensor:
    """The left half, and its reflection on the right."""
    half = (x.shape[-1] + 1) // 2
    return torch.cat([x[..., :half], x[..., : x.shape[-1] - half].flip(-1)], dim=-1)


def mirror_right(x: Tensor) -> Tensor:
    """The right half, and its reflection on the left."""
    return mirror_left(x.flip(-1)).flip(-1)


def zoom_in(x: Tensor) -> Tensor:
    """The middle, twice as large."""
    v, u = coordinates(x)
    return warp(x, u / 2, v / 2)


def zoom_out(x: Tensor) -> Tensor:
    """Half as large in the middle of black."""
    small = half_size(x)
    height, width = small.shape[-2:]
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    canvas = torch.zeros_like(x)
    canvas[..., top : top + height, left : left + width] = small
    return canvas


def bulge(x: Tensor) -> Tensor:
    """The middle swells, four times as large at the centre."""
    return radial_warp(x, lambda r: (0.25 + 0.75 * r**1.5, torch.zeros_like(r)))


def pinch(x: Tensor) -> Tensor:
    """The middle is pulled in."""
    return radial_warp(x, lambda r: (1 + 1.4 * (1 - r) ** 2, torch.zeros_like(r)))


def swirl(x: Tensor) -> Tensor:
    """The middle turns by 200 degrees, the edges not at all."""
    return radial_warp(x, lambda r: (torch.ones_like(r), 3.5 * (1 - r) ** 2))


def tile(x: Tensor) -> Tensor:
    """Four small copies."""
    small = half_size(x)
    return small.repeat(1, 1, 2, 2)[..., : x.shape[-2], : x.shape[-1]]


def kaleidoscope(x: Tensor) -> Tensor:
    """The top left quarter reflected into the other three."""
    return mirror_left(mirror_left(x).mT).mT.contiguous()


def white_frame(x: Tensor) -> Tensor:
    """A white margin of 1/10."""
    return torch.where(_inside(x, 0.1, 0.1), x, 1.0)


def black_frame(x: Tensor) -> Tensor:
    """A black margin of 1/10."""
    return torch.where(_inside(x, 0.1, 0.1), x, 0.0)


def letterbox(x: Tensor) -> Tensor:
    """Black bars over the upper and the lower sixth."""
    return torch.where(_inside(x, x.shape[-2] / 6 / short_side(x), 0), x, 0.0)


def pillarbox(x: Tensor) -> Tensor:
    """Black bars over the left and the right sixth."""
    return torch.where(_inside(x, 0, x.shape[-1] / 6 / short_side(x)), x, 0.0)


def _inside(x: Tensor, vertical: float, horizontal: float) -> Tensor:
    """True (H, W) away from the border by these fractions of the short side."""
    v, u = coordinates(x)
    margin_v = 2 * vertical * short_side(x) / x.shape[-2]
    margin_u = 2 * horizontal * short_side(x) / x.shape[-1]
    return (v.abs() < 1 - margin_v) & (u.abs() < 1 - margin_u)


def blinds(x: Tensor) -> Tensor:
    """Eight dark horizontal stripes."""
    return x * _stripes(coordinates(x)[0])


def bars(x: Tensor) -> Tensor:
    """Eight dark vertical stripes."""
    return x * _stripes(coordinates(x)[1])


def _stripes(across: Tensor) -> Tensor:
    """Light let through: eight stripes with edges soft enough for an autoencoder's latents."""
    wave = torch.cos(torch.pi * 8 * (across + 1))
    return 0.12 + 0.88 * (0.5 - 1.5 * wave).clamp(0, 1)
