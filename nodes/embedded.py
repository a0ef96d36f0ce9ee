"""HY-WU Embedded Encode: photographs and sentences as the embedded backbone takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.v0_0_2 import io

from ..hywu_core.conditions import join_edits
from ..hywu_core.embedded.sizing import fit_image
from ..hywu_core.errors import HywuError
from .backports import search_words
from .encoders import embedded_encoder
from .sockets import CATEGORY, instructions, per_line_input, pixels


class EmbeddedEncode(io.ComfyNode):
    """Images and instructions to CONDITIONING, an empty LATENT and the resized images, one batch of all."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HYWU_EmbeddedEncode",
            display_name="HY-WU Embedded Encode",
            category=CATEGORY,
            description="Prepares a photograph and an instruction for the small FLUX Kontext of this "
            "pack. Models of your own have their own text encoders; they do not need this node.",
            # As HY-WU Condition: what is one batch of edits there is the same one here.
            is_input_list=True,
            **search_words("text encode", "reference latent", "kontext", "clip text", "文本编码"),
            inputs=[
                io.Image.Input("image", tooltip="Any size; it is fitted to about 256 x 256 pixels."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The same words that HY-WU Condition reads.",
                ),
                io.Vae.Input("vae", tooltip="Load VAE with hywu_embedded_autoencoder."),
                per_line_input(),
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
    def execute(
        cls,
        image: list[torch.Tensor],
        prompt: list[str],
        vae: list[Any],
        one_prompt_per_line: Sequence[bool] = (False,),
    ) -> io.NodeOutput:
        """Resize, encode the words, encode the photographs."""
        prompts = instructions(prompt, one_prompt_per_line[0])
        pictures = [fit_image(picture[None])[0] for batch in image for picture in pixels(batch)]
        if len(sizes := {tuple(picture.shape[-2:]) for picture in pictures}) > 1:
            shapes = " and ".join(f"{width} x {height}" for height, width in sorted(sizes))
            raise HywuError(
                f"The photographs have different shapes ({shapes} at their working sizes), and one batch is "
                "sampled in one shape; crop them alike first, with Batch Images for example."
            )
        edits, words = join_edits(prompts, {"image": pictures})
        fitted = torch.stack([picture for (picture,) in edits]).movedim(1, -1)
        text = embedded_encoder().text_encoder.encode(words)
        reference = vae[0].encode(fitted)
        extras = {"pooled_output": text.pooled, "reference_latents": [reference]}
        return io.NodeOutput([[text.tokens, extras]], {"samples": torch.zeros_like(reference)}, fitted)
