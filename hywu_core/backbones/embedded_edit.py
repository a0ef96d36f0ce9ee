"""The embedded models behind the protocol of all backbones: a small FLUX.1-Kontext, files of our own.

Shapes: B batch, Z = 16 latent channels, h x w latents, S = 32 text tokens, E = P = 512.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..embedded import AUTOENCODER, BACKBONE
from ..embedded.autoencoder import TinyAutoencoder
from ..embedded.sizing import MULTIPLE, WORKING_AREA
from ..embedded.text import TEXT_ENCODER, EmbeddedTextEncoder
from ..errors import HywuError
from .base import EditBackbone, EditEncoders, PictureSizes
from .embedded import EmbeddedBackbone
from .flux_kontext import POOLED, FluxKontext
from .inputs import EMBEDS, MASK
from .loading import Parts
from .schedule import FlowSchedule

_MASKS = b"silence is a token"  # of the fingerprint: how masks are made, for what was encoded before


class EmbeddedEncoders(EditEncoders):
    """The embedded autoencoder and text encoder; float32."""

    kind = EmbeddedBackbone.kind
    text_sees_pictures = False
    parts: ClassVar[Parts] = {}

    def __init__(self, device: torch.device) -> None:
        self.id, self.device, self.dtype = BACKBONE.stem, device, torch.float32
        files = (AUTOENCODER.read_bytes(), TEXT_ENCODER.read_bytes())
        self.fingerprint = hashlib.sha256(b"".join((*files, _MASKS))).hexdigest()[:16]
        self.autoencoder = TinyAutoencoder.load(device=device)
        self.pipeline = EmbeddedTextEncoder.load().to(device)

    def encode_image(self, image: Tensor) -> Tensor:
        """A picture (B, 3, H, W) in [0, 1] to latents (B, Z, h, w)."""
        return self.autoencoder.encode(image.to(self.device))

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Latents (B, Z, h, w) to pictures (B, 3, H, W) in [0, 1]."""
        return self.autoencoder.decode(latent.to(self.device))

    def encode_text(self, prompt: str, controls: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """One token for the sentence and one for every piece; those that are not real are zero."""
        text = self.pipeline.encode([prompt], silent=True)
        # Silence is one token, of zeros: a generator that reads this text needs something to read.
        mask = text.mask.clone()
        mask[:, 0] = True
        return {EMBEDS: text.tokens, MASK: mask, POOLED: text.pooled}


class EmbeddedEditBackbone(FluxKontext):
    """The embedded transformer, called as every FLUX.1-Kontext."""

    kind = EmbeddedBackbone.kind
    pipelines = ()
    encoders = EmbeddedEncoders
    target_sizes = PictureSizes(WORKING_AREA, MULTIPLE)
    control_sizes = None
    default_targets = ("*transformer_blocks.*",)  # the modulations too, as the shipped generator has them

    @classmethod
    def load_encoders(
        cls,
        model: str | Path = BACKBONE,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        allow_download: bool = False,
    ) -> EmbeddedEncoders:
        """The embedded encoders, whatever the backbone's file; they compute in float32."""
        return EmbeddedEncoders(torch.device(device))

    @classmethod
    def check_transformer(
        cls,
        model: str | Path = BACKBONE,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        quantize: str | None = None,
        allow_download: bool = False,
    ) -> nn.Module:
        """The embedded transformer whole, for it is small; too small to quantise."""
        if quantize is not None:
            raise HywuError(
                f"The embedded backbone is small already; leave the quantisation to {quantize} out."
            )
        return EmbeddedBackbone.load(model).transformer

    @classmethod
    def load_transformer(
        cls,
        model: str | Path = BACKBONE,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        quantize: str | None = None,
        allow_download: bool = False,
    ) -> EditBackbone:
        """The embedded backbone, or another file of its kind."""
        transformer = cls.check_transformer(model, quantize=quantize).to(device)
        if dtype != torch.float32:
            transformer = transformer.to(dtype)
        backbone = cls(transformer, Path(model).stem, cls.default_schedule())
        backbone.info = EmbeddedBackbone.info(model)
        backbone.fingerprint = backbone.info["sha256"]
        return backbone

    def backbone_info(self) -> dict[str, str]:
        """With the sha256 of the file that the weights were read from."""
        return self.info

    @classmethod
    def default_schedule(cls) -> FlowSchedule:
        """Without a shift."""
        return FlowSchedule()
