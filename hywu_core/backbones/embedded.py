"""The embedded backbone: a small FLUX.1-Kontext (`FluxTransformer2DModel`) for 256-pixel photographs.

Shapes: B batch, Z = 16 latent channels, h x w latents, N = (h/2)(w/2) tokens, E = 512 text channels.

The reference photograph's tokens follow the noisy ones in the sequence; their first RoPE index is 1, as in
Kontext.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..embedded import BACKBONE
from ..embedded.text import TextFeatures
from ..errors import HywuError
from ..storage import file_sha256, open_safetensors, write_safetensors
from .packing import PATCH, patchify, position_ids, unpatchify

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

_REFERENCE_INDEX = 1
CONFIG_KEY = "hywu.backbone_config"


@dataclass(frozen=True)
class EmbeddedBackboneConfig:
    """Size of the embedded FLUX; the hidden width is n_heads * 128 so that ComfyUI recognises it."""

    n_double: int = 1
    n_single: int = 4
    n_heads: int = 2
    text_dim: int = 512
    latent_channels: int = 16

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise HywuError(f"EmbeddedBackboneConfig.{name} is {value}; it must be at least 1.")

    def build(self) -> FluxTransformer2DModel:
        """A randomly initialised diffusers model of this size."""
        from diffusers import FluxTransformer2DModel

        return FluxTransformer2DModel(
            patch_size=1,
            in_channels=self.latent_channels * PATCH**2,
            num_layers=self.n_double,
            num_single_layers=self.n_single,
            attention_head_dim=128,
            num_attention_heads=self.n_heads,
            joint_attention_dim=self.text_dim,
            pooled_projection_dim=self.text_dim,
            guidance_embeds=False,
            axes_dims_rope=(16, 56, 56),
        )


class EmbeddedBackbone(nn.Module):
    """A velocity field over latents, given the photograph and the instruction."""

    kind = "embedded"

    def __init__(
        self, config: EmbeddedBackboneConfig, transformer: FluxTransformer2DModel | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.transformer = transformer if transformer is not None else config.build()

    def forward(self, x: Tensor, time: Tensor, reference: Tensor, text: TextFeatures) -> Tensor:
        """Velocity (B, Z, h, w) at x (B, Z, h, w) and time (B,) in [0, 1]; reference (B, Z, h', w')."""
        height, width = x.shape[-2:]
        tokens = patchify(x)
        image_ids = [
            position_ids(0, height, width, x.device),
            position_ids(_REFERENCE_INDEX, *reference.shape[-2:], x.device),
        ]
        out = self.transformer(
            hidden_states=torch.cat([tokens, patchify(reference)], dim=1),
            encoder_hidden_states=text.tokens,
            pooled_projections=text.pooled,
            timestep=time,
            img_ids=torch.cat(image_ids),
            txt_ids=torch.zeros(text.tokens.shape[1], 3, device=x.device),
            return_dict=False,
        )[0]
        return unpatchify(out[:, : tokens.shape[1]], height, width)

    def save(self, path: str | Path) -> None:
        """Write the file that `load` reads and stock "Load Diffusion Model" opens, in float16."""
        tensors = {
            name: tensor.detach().to("cpu", torch.float16).contiguous()
            for name, tensor in self.transformer.state_dict().items()
        }
        write_safetensors(path, tensors, self.file_metadata())

    def file_metadata(self) -> dict[str, str]:
        """Header metadata with which `load` rebuilds this model."""
        return {"format": "pt", CONFIG_KEY: json.dumps(asdict(self.config))}

    @classmethod
    def info(cls, path: str | Path = BACKBONE) -> dict[str, str]:
        """What a generator's file says about the backbone it was trained on: there may be several files."""
        return {"kind": cls.kind, "id": Path(path).stem, "sha256": file_sha256(path)}

    @classmethod
    def load(cls, path: str | Path = BACKBONE, device: str | torch.device = "cpu") -> EmbeddedBackbone:
        """Read the frozen backbone as float32; HywuError for a missing, damaged or foreign file."""
        with open_safetensors(path) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        if CONFIG_KEY not in metadata:
            raise HywuError(f"{path} is not an embedded backbone: its header has no '{CONFIG_KEY}'.")
        backbone = cls(EmbeddedBackboneConfig(**json.loads(metadata[CONFIG_KEY])))
        try:
            backbone.transformer.load_state_dict(tensors)
        except RuntimeError as error:
            raise HywuError(
                f"{path} contradicts its own config: {str(error).splitlines()[-1].strip()}"
            ) from error
        return backbone.to(device).eval().requires_grad_(False)
