"""The paper's own sizes for a plan (section 4 and the released 8.11B generator).

Counts come from the models' own classes, built without memory; where a size is published but not how it is
made up, the assumption is written beside it and printed with the plan.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..generator import GeneratorConfig
from ..generator.release_config import read_config
from ..generator.release_sizes import released_config
from ..lora import LoraSpec
from ..tokens import TokenLayout
from .plan_backbones import BackboneSize, qwen_image
from .plan_sizes import SIDE, TrainSize, flux_like

_N_CONDITION = 1024
_SIGLIP2_DIM = 1152  # of the so400m model
_WIDTH, _HEADS = 4096, 32
_QWEN_TEXT = 1024  # the instruction and the picture as Qwen2.5-VL reads it, at most so many tokens of 28 x 28


def qwen_image_edit(name: str, weights: float, rank: int) -> TrainSize:
    """A generator of about so many weights "by depth" (paper, section 4) at the width of the 8.11B one."""
    with torch.device("meta"):
        module = qwen_image({})
    backbone = flux_like(module, "qwen_image", SIDE, 2, _QWEN_TEXT)
    spec = LoraSpec.from_module(module, rank=rank, alpha=rank)

    def of_depth(n_layers: int) -> TrainSize:
        config = GeneratorConfig(
            _SIGLIP2_DIM, d_model=_WIDTH, n_layers=n_layers, n_heads=_HEADS, accumulation=4
        )
        return TrainSize(name, config, spec, TokenLayout.for_spec(spec), backbone, _N_CONDITION)

    with torch.device("meta"):
        one, two = (of_depth(n).build_generator().n_parameters for n in (1, 2))
    size = of_depth(max(1, round((weights - one) / (two - one)) + 1))
    known = f"the width {_WIDTH} of the published 8.11B generator, so {size.generator.n_layers} blocks"
    seen = f"a condition of {_N_CONDITION} tokens of SigLIP2's {_SIGLIP2_DIM} channels"
    return replace(size, assumptions=(known, seen))


def hunyuan_image() -> TrainSize:
    """The released generator on HunyuanImage-3.0-Instruct."""
    config, spec, layout = read_config(released_config())
    modules = {module.name: module for module in spec.bands[0].modules}
    backbone = BackboneSize(
        "hunyuan_image",
        {
            "dims": {name: (module.d_in, module.d_out) for name, module in modules.items()},
            "head_dim": 128,
            "experts": modules["mlp.experts.w1"].experts,
            "top_k": 8,
            "channels": 64,
            "vocabulary": 133120,
        },
        {"layers": spec.bands[0].n_layers},
        side=SIDE,
        pictures=2,
        n_text=1024,
        width=modules["self_attn.o_proj"].d_out,
        assumptions=(
            "8 of the 64 experts for each token, evenly: with the shared one the published 13B of 80B",
            "a vocabulary of 133,120 words, 1,024 tokens of text, attention of all tokens to all",
        ),
    )
    return TrainSize("hunyuan_image_3", config, spec, layout, backbone, _N_CONDITION)
