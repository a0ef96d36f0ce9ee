"""The autoencoder of FLUX.1, which other models have taken over: one shift and one scale for all channels.

Shapes: B batch, H x W pixels, Z latent channels, h = H/8, w = W/8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .base import EditEncoders

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class KLEncoders(EditEncoders):
    """Encoders whose pictures go through an `AutoencoderKL`, `vae`."""

    vae: AutoencoderKL

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """A picture (B, 3, H, W) in [0, 1] to the most likely latents (B, Z, h, w)."""
        latents = self.vae.encode(2 * image.to(self.device, self.dtype) - 1).latent_dist.mode()
        return (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latent(self, latent: Tensor) -> Tensor:
        """Latents (B, Z, h, w) to pictures (B, 3, H, W) float32 in [0, 1]."""
        latent = latent.to(self.device, self.dtype)
        latent = latent / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return (self.vae.decode(latent).sample.float() / 2 + 0.5).clamp(0, 1)
