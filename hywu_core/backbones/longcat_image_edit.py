"""LongCat-Image-Edit: a narrower FLUX whose prompt is read by Qwen2.5-VL, which sees the one picture.

Shapes: B batch, Z = 16 latent channels, h x w latents, N tokens, S text tokens, E = 3584 text channels.

RoPE: text tokens are (0, i, i); noisy image and picture are 1 and 2, their rows and columns counted from S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import HywuError
from .autoencoder_kl import KLEncoders
from .base import EditBackbone, PictureSizes
from .flux_kontext import FluxKontext
from .folders import ModelFolder
from .inputs import EMBEDS, MASK, EditInputs, EditSample
from .loading import Parts, load_part
from .packing import position_ids
from .qwen_vl import PROCESSORS, TEXT_PARTS, load_processor, to_pil

_AREA = 1024 * 1024
_MAX_TOKENS = 512


class LongCatImageEditEncoders(KLEncoders):
    """FLUX's autoencoder and Qwen2.5-VL."""

    kind = "longcat_image_edit"
    parts: ClassVar[Parts] = {"vae": ("AutoencoderKL",), **TEXT_PARTS, "text_processor": PROCESSORS}

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(folder, device, dtype)
        from diffusers import LongCatImageEditPipeline

        names = (name for name in self.parts if name != "text_processor")
        parts = {name: load_part(folder, name, device, dtype) for name in names}
        parts["text_processor"] = load_processor(folder, "text_processor")
        self.vae = parts["vae"]
        self.pipeline = LongCatImageEditPipeline(scheduler=None, transformer=None, **parts)

    @torch.no_grad()
    def encode_text(self, prompt: str, controls: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """The picture at half its sides, then the prompt, padded to 512 tokens as the model learned it."""
        LongCatImageEdit.check_controls(len(controls))
        try:
            embeds, _ = self.pipeline.encode_prompt(prompt=[prompt], image=self._as_seen(controls[0]))
        except TypeError as error:  # raised by diffusers' own warning that a prompt is cut
            raise HywuError(
                f"The backbone {self.kind} reads at most {_MAX_TOKENS} tokens of a prompt; this one is "
                f"longer: {prompt[:60]!r} ..."
            ) from error
        return {EMBEDS: embeds}

    def _as_seen(self, picture: Tensor) -> Any:
        from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit as longcat

        height, width = picture.shape[-2:]
        width, height = longcat.calculate_dimensions(_AREA, width / height)
        resize = self.pipeline.image_processor.resize
        return resize(resize(to_pil(picture), height, width), height // 2, width // 2)


class LongCatImageEdit(EditBackbone):
    """diffusers' `LongCatImageTransformer2DModel`, called as by its `LongCatImageEditPipeline`."""

    kind = "longcat_image_edit"
    pipelines = ("LongCatImageEditPipeline",)
    transformer_class = "LongCatImageTransformer2DModel"
    encoders = LongCatImageEditEncoders
    target_sizes = PictureSizes(_AREA, 16)
    control_sizes = None
    n_controls = (1, 1)
    default_targets = FluxKontext.default_targets

    def collate(self, samples: Sequence[EditSample]) -> EditInputs:
        """As for every backbone, but texts must be of one length: the transformer knows no mask."""
        inputs = super().collate(samples)
        if MASK in inputs.text:
            raise HywuError(f"Texts of unlike lengths cannot share a batch of the backbone {self.kind}.")
        return inputs

    def arguments(self, x: Tensor, time: Tensor, inputs: EditInputs, guidance: float) -> dict[str, Any]:
        """As `LongCatImageEditPipeline` calls it."""
        embeds, device = inputs.text[EMBEDS], self.device
        n_text = embeds.shape[1]
        place = torch.arange(n_text, device=device)
        images = (x, *inputs.controls)
        return {
            "hidden_states": self.tokens(x, inputs),
            "encoder_hidden_states": embeds,
            "timestep": time.to(device),
            "txt_ids": torch.stack([torch.zeros_like(place), place, place], dim=-1),
            "img_ids": torch.cat(
                [
                    position_ids(index, *image.shape[-2:], device, (n_text, n_text))
                    for index, image in enumerate(images, start=1)
                ]
            ),
        }
