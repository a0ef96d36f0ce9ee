"""HY-WU Embedded Encode: a photograph and a sentence as the embedded backbone takes them."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.v0_0_2 import io

from ..hywu_core.conditions.embedded import EmbeddedConditionEncoder
from ..hywu_core.embedded.sizing import fit_image
from .condition import encoder_of_kind
from .sockets import CATEGORY, pixels


class EmbeddedEncode(io.ComfyNode):
    """An IMAGE and an instruction to CONDITIONING, an empty LATENT and the resized IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HYWU_EmbeddedEncode",
            display_name="HY-WU Embedded Encode",
            category=CATEGORY,
            description="Prepares a photograph and an instruction for the small FLUX Kontext of this "
            "pack. Models of your own have their own text encoders; they do not need this node.",
            inputs=[
                io.Image.Input("image", tooltip="Any size; it is fitted to about 256 x 256 pixels."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The same words that HY-WU Condition reads.",
                ),
                io.Vae.Input("vae", tooltip="Load VAE with hywu_embedded_autoencoder."),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="The words, and the photograph as the reference."
                ),
                io.Latent.Output(display_name="latent", tooltip="Empty, of the photograph's working size."),
                io.Image.Output(display_name="image", tooltip="The photograph at its working size."),
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, prompt: str, vae: Any) -> io.NodeOutput:
        """Resize, encode the words, encode the photograph."""
        fitted = fit_image(pixels(image)).movedim(1, -1)
        text = encoder_of_kind(EmbeddedConditionEncoder.kind).text_encoder.encode([prompt] * len(fitted))
        reference = vae.encode(fitted)
        extras = {"pooled_output": text.pooled, "reference_latents": [reference]}
        return io.NodeOutput([[text.tokens, extras]], {"samples": torch.zeros_like(reference)}, fitted)
