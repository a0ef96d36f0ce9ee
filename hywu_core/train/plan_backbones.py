"""The frozen backbones a plan knows: how each is built, called and adapted, from plain data.

Shapes: R rows, N image tokens (target and references), S text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..apply import Attachment, attach
from ..lora import Adapter
from .plan_moe import MixtureBackbone


@dataclass(frozen=True)
class BackboneSize:
    """A backbone in plain data.

    kind: "flux", "longcat", "qwen_image" or "hunyuan_image".
    config: arguments of its class.  blocks: of these, how many blocks of each kind.
    side: tokens along a side of a picture.  pictures: target and references.  n_text: text tokens.
    width: channels of a token in the blocks.
    """

    kind: str
    config: Mapping[str, Any]
    blocks: Mapping[str, int]
    side: int
    pictures: int
    n_text: int
    width: int
    assumptions: tuple[str, ...] = field(default=())

    @property
    def n_tokens(self) -> int:
        """N + S, over which attention goes."""
        return self.pictures * self.side**2 + self.n_text

    @property
    def lists(self) -> Mapping[str, str]:
        """Where the blocks of each kind live in the module: the paths of their ModuleLists."""
        return _KINDS[self.kind].lists

    def with_blocks(self, blocks: Mapping[str, int]) -> BackboneSize:
        """The same with other numbers of blocks."""
        return replace(self, blocks=dict(blocks))

    def build(self) -> nn.Module:
        """The module, on torch's default device (`with torch.device("meta")` costs nothing)."""
        return _KINDS[self.kind].build(self.config | self.blocks)

    def velocity(self, module: nn.Module, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The module's output for inputs of the right shapes; the first picture is the target's."""
        return _KINDS[self.kind].call(self, module, rows, {"dtype": dtype, "device": device})

    def adapt(self, module: nn.Module, adapter: Adapter) -> Attachment:
        """Attach an adapter; to a mixture of experts, for good."""
        return module.adapt(adapter) if isinstance(module, MixtureBackbone) else attach(module, adapter)


@dataclass(frozen=True)
class _Kind:
    build: Callable[[Mapping[str, Any]], nn.Module]
    call: Callable[[BackboneSize, nn.Module, int, dict[str, Any]], Tensor]
    lists: Mapping[str, str]


def flux(config: Mapping[str, Any]) -> nn.Module:
    """FLUX.1's transformer."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(**config)


def _call_flux(size: BackboneSize, module: nn.Module, rows: int, like: dict[str, Any]) -> Tensor:
    config = module.config
    return _call_two_streams(
        size,
        module,
        rows,
        like,
        pooled_projections=torch.zeros(rows, config.pooled_projection_dim, **like),
        guidance=torch.ones(rows, **like) if config.guidance_embeds else None,
    )


def longcat(config: Mapping[str, Any]) -> nn.Module:
    """LongCat-Image's transformer; `config` changes what its class says."""
    from diffusers import LongCatImageTransformer2DModel

    return LongCatImageTransformer2DModel(**config)


def _call_two_streams(
    size: BackboneSize, module: nn.Module, rows: int, like: dict[str, Any], **further: Tensor | None
) -> Tensor:
    config, n_image = module.config, size.pictures * size.side**2
    out = module(
        hidden_states=torch.zeros(rows, n_image, config.in_channels, **like),
        encoder_hidden_states=torch.zeros(rows, size.n_text, config.joint_attention_dim, **like),
        timestep=torch.zeros(rows, **like),
        img_ids=torch.zeros(n_image, 3, device=like["device"]),
        txt_ids=torch.zeros(size.n_text, 3, device=like["device"]),
        **further,
        return_dict=False,
    )[0]
    return out[:, : size.side**2]


def qwen_image(config: Mapping[str, Any]) -> nn.Module:
    """Qwen-Image's transformer."""
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(**config)


def _call_qwen(size: BackboneSize, module: nn.Module, rows: int, like: dict[str, Any]) -> Tensor:
    config = module.config
    out = module(
        hidden_states=torch.zeros(rows, size.pictures * size.side**2, config.in_channels, **like),
        encoder_hidden_states=torch.zeros(rows, size.n_text, config.joint_attention_dim, **like),
        timestep=torch.zeros(rows, **like),
        img_shapes=[[(1, size.side, size.side)] * size.pictures] * rows,
        return_dict=False,
    )[0]
    return out[:, : size.side**2]


def _mixture(config: Mapping[str, Any]) -> nn.Module:
    return MixtureBackbone(**config)


def _call_mixture(size: BackboneSize, module: nn.Module, rows: int, like: dict[str, Any]) -> Tensor:
    words = torch.zeros(rows, size.n_text, dtype=torch.long, device=like["device"])
    channels = size.config["channels"]
    out = module(words, torch.zeros(rows, size.pictures * size.side**2, channels, **like))
    return out[:, : size.side**2]


_DOUBLE = {"num_layers": "transformer_blocks"}
_BOTH = _DOUBLE | {"num_single_layers": "single_transformer_blocks"}
_KINDS = {
    "flux": _Kind(flux, _call_flux, _BOTH),
    "longcat": _Kind(longcat, _call_two_streams, _BOTH),
    "qwen_image": _Kind(qwen_image, _call_qwen, _DOUBLE),
    "hunyuan_image": _Kind(_mixture, _call_mixture, {"layers": "model.layers"}),
}
