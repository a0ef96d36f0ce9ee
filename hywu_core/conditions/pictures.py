"""Pictures on their way into an image encoder: checked, resized, cut into patches. With torch alone.

Shapes: B edits, H x W pixels, p patch size, h x w patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..errors import HywuError
from ..images import as_rgb, to_tensor

# One picture is a PIL image, which is read as a file is (`images.load_photo`), or RGB (3, H, W) of floating
# point in [0, 1]; one edit may have a sequence of them.
Picture = Image.Image | Tensor
Pictures = Picture | Sequence[Picture]


def as_pictures(images: Sequence[Pictures] | Tensor, prompts: Sequence[str]) -> list[list[Tensor]]:
    """For each of the B prompts its pictures as float32 (3, H, W) in [0, 1], on the CPU.

    Raises HywuError when there is not one entry for each prompt, one is empty, or a tensor is no picture.
    """
    n_prompts = 1 if isinstance(prompts, str) else len(prompts)
    if isinstance(prompts, str) or len(images) != n_prompts or n_prompts == 0:
        raise HywuError(
            f"Got pictures for {len(images)} edits and {n_prompts} instructions; give lists of equal length."
        )
    edits = []
    for number, entry in enumerate(images):
        several = [entry] if isinstance(entry, (Image.Image, Tensor)) else list(entry)
        if not several:
            raise HywuError(f"Edit {number} has no picture; the condition needs at least one.")
        edits.append([_as_tensor(picture, number) for picture in several])
    return edits


def once_each(edits: Sequence[Sequence[Tensor]], look: Callable[[Tensor], Tensor]) -> list[list[Tensor]]:
    """`look` at every picture of every edit; a picture that several edits share is looked at once.

    One picture at a time: in a batch an encoder rounds differently, and its tokens name what caches keep.
    """
    seen: dict[tuple, Tensor] = {}
    for pictures in edits:
        for picture in pictures:
            if (key := _identity(picture)) not in seen:
                seen[key] = look(picture.contiguous())
    return [[seen[_identity(picture)] for picture in pictures] for pictures in edits]


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) in [0, 1] to (3, *size) in [-1, 1], the range of SigLIP; bilinear, antialiased."""
    resized = F.interpolate(picture[None], size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1) * 2 - 1


def patch_grid(height: int, width: int, patch: int, max_patches: int) -> tuple[int, int]:
    """Rows and columns of patches: as many as allowed, in the picture's aspect ratio (NaFlex)."""

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, ceil(side * scale / patch - 1e-6)) for side in (height, width))
        return rows, columns

    # The grid only grows where a side reaches a whole number of patches.
    scales = [n * patch / side for side in (height, width) for n in range(1, max_patches + 1)]
    return grid(max(s for s in scales if grid(s)[0] * grid(s)[1] <= max_patches))


def cut_patches(picture: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """(3, H, W) in [0, 1] to patches (h * w, p * p * 3) in [-1, 1], row by row, channels last."""
    pixels = resize(picture, (grid[0] * patch, grid[1] * patch))
    return rearrange(pixels, "c (h p) (w q) -> (h w) (p q c)", p=patch, q=patch)


def _identity(picture: Tensor) -> tuple:
    return picture.data_ptr(), picture.shape, picture.stride()


def _as_tensor(picture: Picture, number: int) -> Tensor:
    if isinstance(picture, Image.Image):
        return to_tensor(as_rgb(picture, f"of edit {number}"))[0]
    shape = tuple(picture.shape)
    if len(shape) != 3 or shape[0] != 3 or 0 in shape or not picture.is_floating_point():
        raise HywuError(
            f"A picture of edit {number} is a {picture.dtype} tensor of shape {shape}; "
            "it must be floating point RGB (3, height, width) in [0, 1]."
        )
    return picture.to("cpu", torch.float32)  # not every device can resize with antialiasing
