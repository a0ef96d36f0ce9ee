"""Qwen-Image-Edit 2509 and 2511 ("Plus"): Qwen2.5-VL looks at all pictures while it reads the prompt.

Shapes: B batch, Z = 16 latent channels, h x w latents, N tokens, S text tokens, E = 3584 text channels.

The text sequence is Qwen's last hidden states without the 64 tokens of the template's system part, as
diffusers gives it and ComfyUI's text-encode nodes do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import EditBackbone, EditEncoders, PictureSizes
from .folders import ModelFolder
from .inputs import EMBEDS, MASK, EditInputs
from .loading import Parts, load_part
from .packing import PATCH, patchify, unpatchify
from .qwen_vl import PROCESSORS, TEXT_PARTS, load_processor, to_pil
from .schedule import FlowSchedule


class QwenImageEditEncoders(EditEncoders):
    """Qwen-Image's autoencoder, one shift and scale for each channel, and Qwen2.5-VL."""

    kind = "qwen_image_edit"
    parts: ClassVar[Parts] = {"vae": ("AutoencoderKLQwenImage",), **TEXT_PARTS, "processor": PROCESSORS}

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(folder, device, dtype)
        from diffusers import QwenImageEditPlusPipeline

        parts = {name: load_part(folder, name, device, dtype) for name in self.parts if name != "processor"}
        parts["processor"] = load_processor(folder, "processor")
        self.vae = parts["vae"]
        self.pipeline = QwenImageEditPlusPipeline(scheduler=None, transformer=None, **parts)

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """A picture (B, 3, H, W) in [0, 1], a film of one frame, to the most likely latents (B, Z, h, w)."""
        frames = 2 * image.to(self.device, self.dtype).unsqueeze(2) - 1
        latents = self.vae.encode(frames).latent_dist.mode().squeeze(2)
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    @torch.no_grad()
    def decode_latent(self, latent: Tensor) -> Tensor:
        """Latents (B, Z, h, w) to pictures (B, 3, H, W) float32 in [0, 1]."""
        latent = latent.to(self.device, self.dtype)
        mean, std = self._statistics(latent)
        frames = self.vae.decode((latent * std + mean).unsqueeze(2)).sample
        return (frames.squeeze(2).float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_text(self, prompt: str, controls: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """The prompt after "Picture 1: ... Picture 2: ...", each of them seen at about 384 x 384 pixels."""
        seen = [self._as_seen(control) for control in controls]
        embeds, _ = self.pipeline.encode_prompt(prompt, image=seen or None, device=self.device)
        return {EMBEDS: embeds}

    def _as_seen(self, picture: Tensor) -> Any:
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

        height, width = picture.shape[-2:]
        width, height = plus.calculate_dimensions(plus.CONDITION_IMAGE_SIZE, width / height)
        return self.pipeline.image_processor.resize(to_pil(picture), height, width)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        both = (like.new_tensor(config.latents_mean), like.new_tensor(config.latents_std))
        return both[0].view(1, -1, 1, 1), both[1].view(1, -1, 1, 1)


class QwenImageEdit(EditBackbone):
    """diffusers' `QwenImageTransformer2DModel`, called as by its `QwenImageEditPlusPipeline`.

    Sides are multiples of 32 pixels, as the pipeline chooses them: ComfyUI gives odd numbers of tokens other
    positions than diffusers.
    """

    kind = "qwen_image_edit"
    pipelines = ("QwenImageEditPlusPipeline",)
    transformer_class = "QwenImageTransformer2DModel"
    encoders = QwenImageEditEncoders
    target_sizes = PictureSizes(1024 * 1024, 32)
    control_sizes = PictureSizes(1024 * 1024, 32)
    default_targets = (
        "transformer_blocks.*.attn.*",
        "transformer_blocks.*.img_mlp.*",
        "transformer_blocks.*.txt_mlp.*",
    )

    @classmethod
    def default_schedule(cls) -> FlowSchedule:
        """That of Qwen-Image-Edit-2509."""
        return FlowSchedule(
            {
                "use_dynamic_shifting": True,
                "max_shift": 0.9,
                "max_image_seq_len": 8192,
                "shift_terminal": 0.02,
            }
        )

    def copies(self, target: str) -> int:
        """2511 modulates its pictures at time zero, beside the noisy one at its own: twice the batch."""
        at_both_times = target.startswith("time_text_embed.") or ".img_mod." in target
        return 2 if at_both_times and self.transformer.config.get("zero_cond_t") else 1

    def arguments(self, x: Tensor, time: Tensor, inputs: EditInputs, guidance: float) -> dict[str, Any]:
        """As `QwenImageEditPlusPipeline` calls it; a mask only where prompts were padded."""
        images = [x, *inputs.controls]
        shapes = [(1, image.shape[-2] // PATCH, image.shape[-1] // PATCH) for image in images]
        return {
            "hidden_states": self.tokens(x, inputs),
            "encoder_hidden_states": inputs.text[EMBEDS],
            "encoder_hidden_states_mask": inputs.text.get(MASK),
            "timestep": time.to(self.device),
            "img_shapes": [shapes] * len(x),
        }

    def guide(self, wanted: Tensor, unwanted: Tensor, cfg: float) -> Tensor:
        """Classifier-free guidance that keeps the length of every token's velocity."""
        kept = patchify(wanted).norm(dim=-1, keepdim=True)
        guided = patchify(super().guide(wanted, unwanted, cfg))
        return unpatchify(guided * (kept / guided.norm(dim=-1, keepdim=True)), *wanted.shape[-2:])
