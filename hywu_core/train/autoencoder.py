"""Recipe `embedded_autoencoder`: a TAESD-architecture autoencoder trained for fidelity (PSNR).

Shapes: B batch, H x W pixels, Z latent channels, h x w latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.metrics import psnr
from ..data.photo_ops import OPS, altered
from ..data.photos import load_tensors, random_crops
from ..embedded.autoencoder import TinyAutoencoder
from ..embedded.sizing import fit_image
from ..images import save_sheet
from ..storage import write_safetensors
from .loop import Task

CROP = 128  # the network is convolutional: small crops see more of the photographs per second
EDITED_SHARE = 0.5  # of a batch that shows an operation's result: the autoencoder must carry those too
OPERATIONS_PER_BATCH = 6
LATENT_NOISE = 0.05  # the decoder must bear the small errors of a diffusion model
MOMENT_WEIGHT = 1e-2


class AutoencoderTask(Task):
    """Mean squared error on pixels; latents are kept at zero mean and unit variance for the flow."""

    name = "embedded_autoencoder"
    file_name = "hywu_embedded_autoencoder.safetensors"

    def __init__(self, device: torch.device, compiled: bool, operations: Sequence[str] = tuple(OPS)) -> None:
        self.module = TinyAutoencoder().to(device, memory_format=torch.channels_last)
        halves = (self.module.taesd_encoder, self.module.taesd_decoder)
        self._encode, self._decode = (torch.compile(half) for half in halves) if compiled else halves
        self.operations = operations
        self.photos = [photo.to(device) for photo in load_tensors("train")]
        self.device = device

    def batch(self, size: int, generator: torch.Generator, index: int) -> Tensor:
        """Random crops (B, 3, H, W), half of them under a random operation: this process's rows of them."""
        images = random_crops(self.photos, size, (CROP, CROP), generator)
        edited = int(size * EDITED_SHARE)
        for part in torch.arange(edited).chunk(OPERATIONS_PER_BATCH):
            pick = torch.randint(len(self.operations), (), generator=generator, device=self.device)
            images[part] = altered(OPS[self.operations[int(pick)]], images[part], generator)
        return images[self.share.rows(size)].contiguous(memory_format=torch.channels_last)

    def loss(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Reconstruction error plus the distance of the latents' moments from a standard normal's."""
        latents = self._encode(batch)
        whole = len(batch) * self.share.world
        noise = torch.randn((whole, *latents.shape[1:]), generator=generator, device=self.device)
        restored = self._decode(latents + LATENT_NOISE * noise[self.share.rows(whole)]).float()
        mean, std = self._moments(latents.float())
        moments = mean.square().mean() + (std - 1).square().mean()
        return F.mse_loss(restored, batch) + MOMENT_WEIGHT * moments

    def _moments(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (Z,) of each channel over all processes."""
        mean = self.share.mean(latents.mean((0, 2, 3)))
        # A variance does not move with the mean, so that no gradient has to go through it.
        centred = latents - mean.detach()[:, None, None]
        n = self.share.world * latents.numel() // latents.shape[1]
        variance = self.share.mean(centred.square().mean((0, 2, 3))) * (n / max(1, n - 1))
        return mean, variance.sqrt()

    @torch.no_grad()
    def finish(self, out: Path) -> str:
        """Write the file "Load VAE" opens, and measure it on the held-out photographs at the working size."""
        model = self.module.eval()
        write_safetensors(out / self.file_name, model.comfy_state_dict(), {"format": "pt"})
        rows, scores = [], []
        for photo in load_tensors("held_out"):
            image = fit_image(photo[None].float() / 255).to(self.device)
            restored = model.decode(model.encode(image))
            scores.append(float(psnr(restored, image)))
            rows.append((f"{scores[-1]:.1f} dB", (image[0], restored[0])))
        save_sheet(rows, ("photograph", "decoded"), out / "before_after.png")
        return (
            f"On {len(scores)} held-out photographs the autoencoder restores "
            f"{fmean(scores):.2f} dB (from {min(scores):.2f} to {max(scores):.2f})."
        )
