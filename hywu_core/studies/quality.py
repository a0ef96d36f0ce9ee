"""How near an edit is to the exact result, by three measures that see different things.

Shapes: H x W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import flip_evaluator
from skimage.metrics import structural_similarity
from torch import Tensor

from ..data.metrics import psnr


class Measure(NamedTuple):
    """A measure of quality: how it is written, and whether more of it is better."""

    label: str
    digits: int
    more_is_better: bool


MEASURES = {
    "psnr": Measure("PSNR, dB", 1, True),
    "ssim": Measure("SSIM", 3, True),
    "flip": Measure("FLIP", 3, False),
}


def quality(image: Tensor, exact: Tensor) -> dict[str, float]:
    """Of an image (3, H, W) against the exact result (3, H, W), both in [0, 1]; a value for each measure.

    SSIM is that of Wang et al. (2004) as in scikit-image, averaged over the channels; FLIP is the mean
    perceived difference of Andersson et al. (2020), at its default 67 pixels per degree.
    """
    shown, wanted = (x.clamp(0, 1).permute(1, 2, 0).contiguous().numpy() for x in (image, exact))
    _, flip, _ = flip_evaluator.evaluate(wanted, shown, "LDR", applyMagma=False)
    return {
        "psnr": float(psnr(image[None], exact[None])),
        "ssim": float(structural_similarity(wanted, shown, data_range=1.0, channel_axis=2)),
        "flip": float(flip),
    }
