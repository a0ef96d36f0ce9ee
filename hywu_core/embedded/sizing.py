"""From any photograph to the embedded models' working size, alike on the command line and in ComfyUI."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import HywuError

WORKING_AREA = 256 * 256
MULTIPLE = 16  # 8 pixels to a latent, 2 x 2 latents to a token
WIDEST = 2.5  # longer panoramas lose their ends: the models were trained on 4:7 to 7:4


def working_size(height: int, width: int, area: int = WORKING_AREA) -> tuple[int, int]:
    """The (height, width) of about `area` pixels, both multiples of 16, nearest in shape to the given."""
    if min(height, width) < 1:
        raise HywuError(f"The image is {width} x {height} pixels; it needs at least one each way.")
    aspect = min(max(width / height, 1 / WIDEST), WIDEST)
    ideal = math.sqrt(area / aspect)

    def snap(length: float) -> int:
        return max(MULTIPLE, round(length / MULTIPLE) * MULTIPLE)

    return snap(ideal), snap(ideal * aspect)


def fit_image(images: Tensor, area: int = WORKING_AREA) -> Tensor:
    """Resize images (B, 3, H, W) in [0, 1] to `working_size`; centre-cropped first where wider than 5:2.

    Computed on the CPU in float32 whatever the input's device, because antialiased resizing differs between
    devices.
    """
    height, width = images.shape[-2:]
    crop_h, crop_w = min(height, math.ceil(width * WIDEST)), min(width, math.ceil(height * WIDEST))
    top, left = (height - crop_h) // 2, (width - crop_w) // 2
    cropped = images[..., top : top + crop_h, left : left + crop_w].float().cpu()
    size = working_size(height, width, area)
    if cropped.shape[-2:] == size:
        return cropped.to(images.device)
    resized = F.interpolate(cropped, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1).to(images.device, torch.float32)
