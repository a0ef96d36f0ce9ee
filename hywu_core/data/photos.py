"""The photographs that ship with the project: which are held out, and random crops of the others to train on.

Shapes: N crops, H x W pixels of a crop, h x w pixels of a photograph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..errors import HywuError

FOLDER = Path(__file__).parent / "photos"
# Whole photographs, never trained on: an animal, a building, a landscape, a still life.
HELD_OUT = ("cat", "pagoda", "mountains", "coffee")

_SMALLEST_SHARE = 0.15  # of a photograph's area in a crop
_LARGEST_STRETCH = 1.15  # of a crop's shape against the shape asked for
_PLAIN_SHARE = 0.3  # of the crops that keep the photograph's own tones


def list_photos(split: str) -> list[str]:
    """Names of the photographs of 'train' or 'held_out', alphabetical; HywuError for another split."""
    if split not in ("train", "held_out"):
        raise HywuError(f"There is no split '{split}' of the photographs; choose train or held_out.")
    names = sorted(path.stem for path in FOLDER.glob("*.jpg"))
    return [name for name in names if (name in HELD_OUT) == (split == "held_out")]


def load_photo(name: str) -> Image.Image:
    """One photograph as RGB; HywuError for a name that does not exist."""
    if name not in list_photos("train") + list_photos("held_out"):
        raise HywuError(f"There is no photograph '{name}'.")
    with Image.open(FOLDER / f"{name}.jpg") as image:
        return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, h, w) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def load_tensors(split: str) -> list[Tensor]:
    """All photographs of a split as (3, h, w) uint8."""
    return [to_tensor(load_photo(name)) for name in list_photos(split)]


def random_crops(
    photos: Sequence[Tensor], n: int, size: tuple[int, int], generator: torch.Generator, jitter: bool = True
) -> Tensor:
    """`n` random crops (N, 3, H, W) float32 in [0, 1] of uint8 photographs on the generator's device.

    Each shows 15 to 100% of a photograph, flipped half of the time. With `jitter`, most have other tones and
    colours than the original, so that a few photographs teach about many.
    """
    device = generator.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, device=device)

    # One read-back for all crops: reading each number alone would make a GPU wait a thousand times.
    draws = torch.rand((n, 6), generator=generator, device=device).tolist()
    crops = torch.stack([_crop(photos[int(draw[0] * len(photos))], draw, size) for draw in draws])
    if not jitter:
        return crops
    jittered = _jitter(crops, uniform)
    plain = (uniform(0, 1, n) < _PLAIN_SHARE).view(-1, 1, 1, 1)
    return torch.where(plain, crops, jittered)


def _crop(photo: Tensor, draw: Sequence[float], size: tuple[int, int]) -> Tensor:
    """A crop of (3, h, w) as (3, H, W), antialiased; `draw`: uniforms for scale, stretch, place and flip."""
    height, width = photo.shape[-2:]
    _, scale, stretch, down, right, flip = draw
    aspect = size[1] / size[0] * _LARGEST_STRETCH ** (2 * stretch - 1)
    area = height * width * (_SMALLEST_SHARE + (1 - _SMALLEST_SHARE) * scale)
    crop_w = min(width, round(math.sqrt(area * aspect)))
    crop_h = min(height, round(crop_w / aspect))
    crop_w = min(crop_w, round(crop_h * aspect))
    top, left = int(down * (height - crop_h + 1)), int(right * (width - crop_w + 1))
    top, left = min(top, height - crop_h), min(left, width - crop_w)
    piece = photo[None, :, top : top + crop_h, left : left + crop_w].float() / 255
    piece = F.interpolate(piece, size=size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(
        0, 1
    )
    return piece.flip(-1) if flip < 0.5 else piece


def _jitter(x: Tensor, uniform) -> Tensor:
    """Random exposure, contrast, saturation, white balance and hue of every image (N, 3, H, W)."""
    n = len(x)
    x = x ** uniform(math.log(0.6), math.log(1.6), n, 1, 1, 1).exp()
    x = (x - 0.5) * uniform(0.75, 1.2, n, 1, 1, 1) + 0.5 + uniform(-0.05, 0.05, n, 1, 1, 1)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * uniform(0.5, 1.4, n, 1, 1, 1)
    x = x * uniform(0.85, 1.15, n, 3, 1, 1)
    return _rotate_hue(x, uniform(-math.pi, math.pi, n) * (uniform(0, 1, n) < 0.3)).clamp(0, 1)


def _rotate_hue(x: Tensor, angle: Tensor) -> Tensor:
    """Turn the colours of (N, 3, H, W) about the grey axis by `angle` (N,) radians (Rodrigues' formula)."""
    cosine, sine = angle.cos(), angle.sin()
    same = (cosine + (1 - cosine) / 3)[:, None, None] * torch.eye(3, device=x.device)
    forward = ((1 - cosine) / 3 - sine / math.sqrt(3))[:, None, None]
    backward = ((1 - cosine) / 3 + sine / math.sqrt(3))[:, None, None]
    ring = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], device=x.device)
    return torch.einsum("nij,njhw->nihw", same + forward * ring + backward * ring.T, x)
