"""FLUX.1-Kontext: T5 and CLIP read the prompt; a picture's tokens follow the noisy ones.

Shapes: B batch, Z = 16 latent channels, h x w latents, N tokens, S = 512 text tokens, E = 4096, P = 768.

A picture's first RoPE index is 1, the noisy image's 0. diffusers' pipeline takes one picture; where there are
more they lie beside or below each other, as ComfyUI places them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .autoencoder_kl import KLEncoders
from .base import EditBackbone, PictureSizes
from .folders import ModelFolder
from .inputs import EMBEDS, EditInputs
from .loading import Parts, load_part
from .packing import PATCH, position_ids

POOLED = "pooled"
_MAX_TOKENS = 512
_PICTURE = 1  # first RoPE index


class FluxKontextEncoders(KLEncoders):
    """FLUX's autoencoder, T5 for the words and CLIP for their sum; pictures do not enter the text."""

    kind = "flux_kontext"
    text_sees_pictures = False
    parts: ClassVar[Parts] = {
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("T5EncoderModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "tokenizer_2": ("T5TokenizerFast", "T5Tokenizer"),
    }

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(folder, device, dtype)
        from diffusers import FluxKontextPipeline

        parts = {name: load_part(folder, name, device, dtype) for name in self.parts}
        self.vae = parts["vae"]
        self.pipeline = FluxKontextPipeline(scheduler=None, transformer=None, **parts)

    @torch.no_grad()
    def encode_text(self, prompt: str, controls: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """T5's tokens, padded to 512 as the model learned it, and CLIP's summary of the prompt."""
        embeds, pooled, _ = self.pipeline.encode_prompt(
            prompt, device=self.device, max_sequence_length=_MAX_TOKENS
        )
        return {EMBEDS: embeds, POOLED: pooled}


class FluxKontext(EditBackbone):
    """diffusers' `FluxTransformer2DModel`, called as by its `FluxKontextPipeline`."""

    kind = "flux_kontext"
    pipelines = ("FluxKontextPipeline",)
    transformer_class = "FluxTransformer2DModel"
    encoders = FluxKontextEncoders
    target_sizes = PictureSizes(1024 * 1024, 16)
    control_sizes = PictureSizes(1024 * 1024, 16)
    default_targets = (
        "transformer_blocks.*.attn.*",
        "transformer_blocks.*.ff.*",
        "transformer_blocks.*.ff_context.*",
        "single_transformer_blocks.*.attn.*",
        "single_transformer_blocks.*.proj_*",
    )

    def arguments(self, x: Tensor, time: Tensor, inputs: EditInputs, guidance: float) -> dict[str, Any]:
        """As `FluxKontextPipeline` calls it."""
        embeds, device = inputs.text[EMBEDS], self.device
        sizes = [control.shape[-2:] for control in inputs.controls]
        starts = picture_starts(sizes)
        ids = [
            position_ids(0, *x.shape[-2:], device),
            *(
                position_ids(_PICTURE, *size, device, start)
                for size, start in zip(sizes, starts, strict=True)
            ),
        ]
        embedded = self.transformer.config.guidance_embeds
        return {
            "hidden_states": self.tokens(x, inputs),
            "encoder_hidden_states": embeds,
            "pooled_projections": inputs.text[POOLED],
            "timestep": time.to(device),
            "img_ids": torch.cat(ids),
            "txt_ids": torch.zeros(embeds.shape[1], 3, device=device),
            "guidance": torch.full((len(x),), guidance, device=device) if embedded else None,
        }


def picture_starts(sizes: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Where (row, column in tokens) each picture of (h, w) latents begins on one common canvas.

    The next one is set where the canvas grows least, to the right of the others or below them.
    """
    height = width = 0
    for h, w in sizes:
        top, left = (0, width) if h + height > w + width else (height, 0)
        height, width = max(height, h + top), max(width, w + left)
        yield top // PATCH, left // PATCH
