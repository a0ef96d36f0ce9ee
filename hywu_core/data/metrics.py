"""How near an edit is to the exact result."""

import torch
from torch import Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image of a batch (B, 3, H, W) with values in [0, 1]: (B,)."""
    error = (a.float() - b.float()).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(1e-10))
