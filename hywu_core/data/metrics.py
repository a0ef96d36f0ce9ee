"""How near an edit is to the exact result."""

import torch
from torch import Tensor

EQUAL = 100.0  # dB: what pictures get that are the same; a mean would be about little else


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image of a batch (B, 3, H, W) with values in [0, 1]: (B,), in dB.

    At most EQUAL.
    """
    error = (a.float() - b.float()).square().flatten(1).mean(1)
    least = 10 ** (-EQUAL / 10)
    # Exactly EQUAL there, whatever a device makes of the logarithm.
    return torch.where(error > least, -10 * torch.log10(error.clamp_min(least)), EQUAL).clamp_max(EQUAL)
