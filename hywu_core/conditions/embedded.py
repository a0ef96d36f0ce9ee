"""The embedded condition encoder: the autoencoder sees the photograph, the text encoder reads the words.

Shapes: B batch, S = 17 + 32 tokens, Z = 16 latent channels, h x w latents, E = 512 text channels, D = E + 2Z.

Paper 3.3: `c = concat[Enc_img(image), Enc_txt(instruction)]` along the token axis. The two encoders speak in
channels of their own (the other's are zero), which gives each its own projection inside the generator's first
linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..embedded.autoencoder import LATENT_CHANNELS, TinyAutoencoder
from ..embedded.sizing import fit_image
from ..embedded.text import EmbeddedTextEncoder, TextFeatures
from ..errors import HywuError
from .condition import Condition

GRID = 4
TEXT_DIM = 512
IMAGE_DIM = 2 * LATENT_CHANNELS
CONDITION_DIM = TEXT_DIM + IMAGE_DIM


def image_tokens(latents: Tensor) -> Tensor:
    """Latents (B, Z, h, w) to (B, 1 + GRID * GRID, 2Z): mean and deviation of the whole and of each cell."""
    stats = []
    for cells in (1, GRID):
        mean = F.adaptive_avg_pool2d(latents, cells)
        variance = F.adaptive_avg_pool2d(latents.square(), cells) - mean.square()
        stats.append(torch.cat([mean, variance.clamp_min(0).sqrt()], dim=1).flatten(2))
    return torch.cat(stats, dim=2).transpose(1, 2)


def embedded_condition(latents: Tensor, text: TextFeatures) -> Condition:
    """Concatenate what was seen and what was read: latents (B, Z, h, w), text tokens (B, 32, E)."""
    seen = F.pad(image_tokens(latents.float()), (TEXT_DIM, 0))
    read = F.pad(text.tokens.to(seen), (0, IMAGE_DIM))
    mask = torch.cat([seen.new_ones(seen.shape[:2], dtype=torch.bool), text.mask.to(seen.device)], dim=1)
    return Condition(tokens=torch.cat([seen, read], dim=1), mask=mask)


class EmbeddedConditionEncoder:
    """Encodes photographs and instructions with the models that ship with the project."""

    kind = "embedded"
    id = "hywu-embedded-1"
    dim = CONDITION_DIM

    def __init__(self, autoencoder: TinyAutoencoder, text_encoder: EmbeddedTextEncoder) -> None:
        self.autoencoder = autoencoder
        self.text_encoder = text_encoder

    @classmethod
    def load(cls) -> EmbeddedConditionEncoder:
        """Read both encoders from the files in `hywu_core/embedded`."""
        return cls(TinyAutoencoder.load(), EmbeddedTextEncoder.load())

    @classmethod
    def info(cls) -> dict[str, str | int]:
        """What a generator file says about the encoder it was trained with."""
        return {"kind": cls.kind, "id": cls.id, "dim": cls.dim}

    @torch.no_grad()
    def encode(self, images: Tensor, prompts: Sequence[str]) -> Condition:
        """Images (B, 3, H, W) in [0, 1], any size, and B prompts to a Condition (B, S, D)."""
        if len(images) != len(prompts):
            raise HywuError(
                f"Got {len(images)} images and {len(prompts)} instructions; give one for each image."
            )
        latents = self.autoencoder.encode(fit_image(images))
        return embedded_condition(latents, self.text_encoder.encode(list(prompts)))
