"""What the operations are made of: luma, separable filters as matrices, coordinates and warps.

A separable filter of any width is two matrix products, `rows @ x @ columns^T`. That costs the same for
every radius, treats borders exactly, needs no padding, and is fast on CPU and GPU alike at the sizes used
here. All lengths are parts of the short side, so that an operation means the same at every resolution.

B batch, H height, W width, N a side of the picture. Images are float (B, 3, H, W) in [0, 1].
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

REC601 = (0.299, 0.587, 0.114)
"""Luma weights of ITU-R BT.601."""


def colour(rgb: tuple[float, float, float], like: Tensor) -> Tensor:
    """An RGB colour as a tensor (1, 3, 1, 1) with the dtype and device of `like`."""
    return torch.tensor(rgb, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


def luma(x: Tensor) -> Tensor:
    """BT.601 luma (B, 1, H, W)."""
    return (x * colour(REC601, x)).sum(1, keepdim=True)


def mix(a: Tensor, b: Tensor, share: Tensor | float) -> Tensor:
    """`a` where `share` is 0, `b` where it is 1."""
    return a + (b - a) * share


def smoothstep(low: float, high: float, x: Tensor) -> Tensor:
    """0 below `low`, 1 above `high`, a cubic with flat ends between them."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def short_side(x: Tensor) -> int:
    """The shorter side in pixels."""
    return min(x.shape[-2:])


def coordinates(x: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel centres v (H, 1), downwards, and u (1, W), rightwards; the picture spans -1 to 1 on both axes."""
    height, width = x.shape[-2:]
    v = (torch.arange(height, dtype=x.dtype, device=x.device) + 0.5) * (2 / height) - 1
    u = (torch.arange(width, dtype=x.dtype, device=x.device) + 0.5) * (2 / width) - 1
    return v[:, None], u[None, :]


# ---------------------------------------------------------------- separable filters


def filtered(x: Tensor, matrix: Callable[[int], Tensor]) -> Tensor:
    """Apply `matrix(side)` (outputs, side) along both axes."""
    return matrix(x.shape[-2]).to(x) @ x @ matrix(x.shape[-1]).to(x).mT


def _convolution(n: int, kernel: Callable[[Tensor], Tensor], reach: float, device: torch.device) -> Tensor:
    """(n, n) matrix of a convolution with mirrored borders.

    `kernel` is the weight of a pixel at that many pixels before this one, next to nothing beyond `reach`.
    """
    pixel = torch.arange(n, dtype=torch.float32, device=device)
    offset = pixel[:, None] - pixel[None, :]
    total = kernel(offset)
    for period in range(math.ceil(reach / (2 * n)) + 1):
        # Pixel j is seen again in the mirrors at -1 - j - 2nk, 2n - 1 - j + 2nk and j +- 2n(k + 1).
        mirror = pixel[:, None] + pixel[None, :] + 1
        shift = 2 * n * period
        total = total + kernel(mirror + shift) + kernel(mirror - 2 * n - shift)
        total = total + kernel(offset + shift + 2 * n) + kernel(offset - shift - 2 * n)
    return total / total.sum(1, keepdim=True)


def gaussian(n: int, sigma: float, device: torch.device) -> Tensor:
    """(n, n) Gaussian blur of standard deviation `sigma` pixels."""
    return _convolution(n, lambda d: torch.exp(-0.5 * (d / sigma) ** 2), 4 * sigma, device)


def trail(n: int, length: float, device: torch.device) -> Tensor:
    """(n, n) trail towards higher indices that has faded to 1/e after `length` pixels."""
    return _convolution(n, lambda d: torch.exp(-d.clamp_min(0) / length) * (d >= 0), 6 * length, device)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur; `sigma` is a fraction of the short side."""
    return filtered(x, lambda n: gaussian(n, sigma * short_side(x), x.device))


def half_size(x: Tensor) -> Tensor:
    """Area average to half of each side (rounded up): (B, C, ceil(H / 2), ceil(W / 2))."""

    def halve(n: int) -> Tensor:
        edges = torch.linspace(0, n, (n + 1) // 2 + 1, device=x.device)
        pixel = torch.arange(n, device=x.device, dtype=torch.float32)
        covered = torch.minimum(pixel + 1, edges[1:, None]) - torch.maximum(pixel, edges[:-1, None])
        covered = covered.clamp_min(0)
        return covered / covered.sum(1, keepdim=True)

    return filtered(x, halve).clamp(0, 1)


# ---------------------------------------------------------------- edges and warps


def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences (d/dx, d/dy) per short side, borders repeated."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    scale = 0.5 * short_side(x)
    return (
        (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) * scale,
        (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) * scale,
    )


def warp(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The picture sampled at (u, v), each (H, W), in units of `coordinates`; outside it is mirrored."""
    grid = torch.stack(torch.broadcast_tensors(u, v), dim=-1).expand(x.shape[0], -1, -1, -1)
    return F.grid_sample(
        x, grid.to(x), mode="bilinear", padding_mode="reflection", align_corners=False
    ).clamp(0, 1)


def radial_warp(x: Tensor, bend: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Warp inside the largest centred ellipse.

    `bend` maps the distance from the centre (0 there, 1 on the ellipse, clamped) to the source's distance
    as a factor, and its rotation in radians, both (H, W).
    """
    v, u = coordinates(x)
    distance = (u * u + v * v).sqrt().clamp(max=1)
    factor, angle = bend(distance)
    cos, sin = factor * angle.cos(), factor * angle.sin()
    return warp(x, u * cos - v * sin, u * sin + v * cos)
