"""The module names of the backbones whose LoRA files everybody exchanges, one table for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Architecture:
    """How the LoRA files of one family of backbones name things.

    blocks: name of a ModuleList -> (its name in files of the original release, {original module: target
        modules}). An original module that is several targets is fused: their outputs follow each other in
        its rows.
    loose: modules outside the blocks, original name -> target name.
    prefix: what stock loaders expect before the target name.
    """

    name: str
    prefix: str
    modelspec: str
    base_model_version: str
    blocks: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]]
    loose: Mapping[str, str] = field(default_factory=dict)

    def knows(self, target: str) -> bool:
        """Whether a target name belongs to this architecture."""
        match = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", target)
        if match is None or match[1] not in self.blocks:
            return target in self.loose.values()
        return any(match[3] in parts for parts in self.blocks[match[1]][1].values())


def _same(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


FLUX = Architecture(
    name="flux",
    prefix="transformer.",
    modelspec="Flux.1-dev/lora",
    base_model_version="flux1",
    blocks={
        "transformer_blocks": (
            "double_blocks",
            {
                "img_mod.lin": ("norm1.linear",),
                "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "img_attn.proj": ("attn.to_out.0",),
                "img_mlp.0": ("ff.net.0.proj",),
                "img_mlp.2": ("ff.net.2",),
                "txt_mod.lin": ("norm1_context.linear",),
                "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                "txt_attn.proj": ("attn.to_add_out",),
                "txt_mlp.0": ("ff_context.net.0.proj",),
                "txt_mlp.2": ("ff_context.net.2",),
            },
        ),
        "single_transformer_blocks": (
            "single_blocks",
            {
                "modulation.lin": ("norm.linear",),
                "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
                "linear2": ("proj_out",),
            },
        ),
    },
    # norm_out is left out: its two halves change places between the two namings.
    loose={
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "final_layer.linear": "proj_out",
    },
)

QWEN_IMAGE = Architecture(
    name="qwen_image",
    prefix="diffusion_model.",
    modelspec="Qwen-Image-Edit-Plus/lora",
    base_model_version="qwen_image",
    blocks={
        "transformer_blocks": (
            "transformer_blocks",
            _same(
                *(f"attn.{m}" for m in ("to_q", "to_k", "to_v", "to_out.0")),
                *(f"attn.{m}" for m in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
                *(
                    f"{stream}_{m}"
                    for stream in ("img", "txt")
                    for m in ("mlp.net.0.proj", "mlp.net.2", "mod.1")
                ),
            ),
        )
    },
    loose={
        name: name
        for name in (
            "img_in",
            "txt_in",
            "proj_out",
            "norm_out.linear",
            "time_text_embed.timestep_embedder.linear_1",
            "time_text_embed.timestep_embedder.linear_2",
        )
    },
)

ARCHITECTURES = (FLUX, QWEN_IMAGE)


def architecture_of(targets: Iterable[str]) -> Architecture | None:
    """The architecture that has all these targets; None if it is another one, or if several have them."""
    targets = list(targets)
    fitting = [a for a in ARCHITECTURES if all(a.knows(target) for target in targets)]
    return fitting[0] if len(fitting) == 1 else None
