"""The embedded condition encoder: the autoencoder sees the photograph, the text encoder reads the words.

Shapes: B batch, S = 17 + 32 tokens, Z = 16 latent channels, h x w latents, E = 512 text channels, D = E + 2Z.

Paper 3.3: `c = concat[Enc_img(image), Enc_txt(instruction)]` along the token axis. The two encoders speak in
channels of their own (the other's are zero), which gives each its own projection inside the generator's first
linear layer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..embedded import AUTOENCODER
from ..embedded.autoencoder import LATENT_CHANNELS, TinyAutoencoder
from ..embedded.sizing import fit_image
from ..embedded.text import TEXT_ENCODER, EmbeddedTextEncoder, TextFeatures
from ..errors import HywuError
from ..storage import file_sha256
from .condition import Condition
from .pictures import Pictures, as_pictures, once_each

log = logging.getLogger("hywu")

GRID = 4
TEXT_DIM = 512
IMAGE_DIM = 2 * LATENT_CHANNELS
CONDITION_DIM = TEXT_DIM + IMAGE_DIM


def image_tokens(latents: Tensor) -> Tensor:
    """Latents (B, Z, h, w) to (B, 1 + GRID * GRID, 2Z): mean and deviation of the whole and of each cell."""
    device = latents.device
    if device.type == "mps":  # which pools only sizes that the grid divides, as few photographs do
        latents = latents.cpu()
    stats = []
    for cells in (1, GRID):
        mean = F.adaptive_avg_pool2d(latents, cells)
        variance = F.adaptive_avg_pool2d(latents.square(), cells) - mean.square()
        stats.append(torch.cat([mean, variance.clamp_min(0).sqrt()], dim=1).flatten(2))
    return torch.cat(stats, dim=2).transpose(1, 2).to(device)


def embedded_condition(
    latents: Tensor, text: TextFeatures, prompts: Sequence[str] | None = None
) -> Condition:
    """Concatenate what was seen and what was read: latents (B, Z, h, w), text tokens (B, 32, E).

    prompts: the words themselves, for provenance.
    """
    return _concatenate(image_tokens(latents.float()), text, prompts)


def _concatenate(image: Tensor, text: TextFeatures, prompts: Sequence[str] | None) -> Condition:
    """Image tokens (B, 17, 2Z) before text tokens (B, 32, E), each in its own channels."""
    seen = F.pad(image, (TEXT_DIM, 0))
    read = F.pad(text.tokens.to(seen), (0, IMAGE_DIM))
    mask = torch.cat([seen.new_ones(seen.shape[:2], dtype=torch.bool), text.mask.to(seen.device)], dim=1)
    return Condition(torch.cat([seen, read], dim=1), mask, None if prompts is None else tuple(prompts))


class EmbeddedConditionEncoder:
    """Encodes photographs and instructions with the models that ship with the project."""

    kind = "embedded"
    id = "hywu-embedded-1"
    dim = CONDITION_DIM

    def __init__(
        self, autoencoder: TinyAutoencoder, text_encoder: EmbeddedTextEncoder, silent: bool = False
    ) -> None:
        """`silent`: an empty instruction is a condition without words, instead of an error."""
        self.autoencoder = autoencoder
        self.text_encoder = text_encoder
        self.silent = silent

    @classmethod
    def load(cls, silent: bool = False) -> EmbeddedConditionEncoder:
        """Read both encoders from the files in `hywu_core/embedded`."""
        return cls(TinyAutoencoder.load(), EmbeddedTextEncoder.load(), silent)

    @classmethod
    def info(cls) -> dict[str, str | int]:
        """What a generator file says about the encoder it was trained with; sha256 is of both its files."""
        files = "".join(file_sha256(path) for path in (AUTOENCODER, TEXT_ENCODER))
        return {"kind": cls.kind, "id": cls.id, "dim": cls.dim, "sha256": sha256(files.encode()).hexdigest()}

    @classmethod
    def recognise(cls, info: Mapping[str, Any]) -> None:
        """Warn if a generator's file (its `encoder_info`) says that it learned with other files than these.

        What it writes may still be good, and is at worst not what was asked for: no reason to refuse it.
        """
        if "sha256" in info and info["sha256"] != (here := cls.info()["sha256"]):
            log.warning(
                "This generator learned with other files of the embedded encoders (sha256 %.8s) than are "
                "here (%.8s): what it makes of a photograph and an instruction may be off.",
                info["sha256"],
                here,
            )

    @torch.no_grad()
    def encode(self, images: Sequence[Pictures] | Tensor, prompts: Sequence[str]) -> Condition:
        """Pictures of any sizes, one for each of the B prompts, to a Condition (B, S, D).

        HywuError for more than one picture of an edit.
        """
        edits = as_pictures(images, prompts)
        for number, pictures in enumerate(edits):
            if len(pictures) > 1:
                raise HywuError(
                    f"Edit {number} has {len(pictures)} reference pictures, but the embedded encoder looks "
                    "at one; leave the others out, or use a generator that learned with several."
                )
        device = next(self.autoencoder.parameters()).device

        def look(picture: Tensor) -> Tensor:
            return image_tokens(self.autoencoder.encode(fit_image(picture[None]).to(device)).float())

        image = torch.cat([tokens for (tokens,) in once_each(edits, look)])
        text = self.text_encoder.encode(list(prompts), silent=self.silent)
        return _concatenate(image, text, prompts)
