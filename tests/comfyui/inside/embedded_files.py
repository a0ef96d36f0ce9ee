# ruff: noqa: E402 (ComfyUI must be opened before it is imported)
"""What ComfyUI makes of the embedded models' files, beside what the library computes with the same files."""

from __future__ import annotations

import json

from open_comfy import open_comfy

WORK = open_comfy()

import comfy.model_management
import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from pack.hywu_core.backbones.embedded import EmbeddedBackbone
from pack.hywu_core.backbones.sampling import simple_sigmas
from pack.hywu_core.embedded.autoencoder import TinyAutoencoder
from pack.hywu_core.embedded.text import TextFeatures

BACKBONE = WORK / "random_backbone.safetensors"
AUTOENCODER = WORK / "random_autoencoder.safetensors"


def main() -> dict[str, float]:
    """Largest absolute differences."""
    torch.manual_seed(4)
    x, reference = torch.randn(2, 16, 16, 24), torch.randn(2, 16, 12, 20)
    text = TextFeatures(torch.randn(2, 32, 512), torch.ones(2, 32, dtype=torch.bool), torch.randn(2, 512))
    time = torch.full((2,), 0.7)
    patcher = comfy.sd.load_diffusion_model(str(BACKBONE))
    comfy.model_management.load_models_gpu([patcher])
    model = patcher.model
    theirs = model.diffusion_model(x, time, text.tokens, y=text.pooled, ref_latents=[reference])
    ours = EmbeddedBackbone.load(BACKBONE)(x, time, reference, text)

    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(AUTOENCODER)))
    autoencoder = TinyAutoencoder.load(AUTOENCODER)
    images = torch.rand(1, 3, 128, 192)
    latents = autoencoder.encode(images)
    encoded = model.process_latent_in(vae.encode(images.movedim(1, -1)))
    decoded = vae.decode(model.process_latent_out(latents)).movedim(-1, 1)
    sigmas = [
        (
            comfy.samplers.calculate_sigmas(model.model_sampling, "simple", steps)
            - torch.tensor(simple_sigmas(steps))
        )
        for steps in (1, 7, 8, 20, 50)
    ]
    return {
        "velocity_size": ours.abs().mean().item(),
        "velocity_gap": (theirs - ours).abs().max().item(),
        "latents_gap": (encoded - latents).abs().max().item(),
        "images_gap": (decoded - autoencoder.decode(latents)).abs().max().item(),
        "sigmas_gap": max(difference.abs().max().item() for difference in sigmas),
    }


print(json.dumps(main()))
