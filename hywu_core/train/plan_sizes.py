"""The sizes a plan can be made for: a generator, what it adapts, and the backbone, as plain data.

Counts come from the models' own classes, built without memory; where a size is published but not how it is
made up, the assumption is written beside it and printed with the plan.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from ..backbones.embedded import EmbeddedBackbone
from ..conditions.embedded import GRID
from ..embedded import GENERATOR
from ..embedded.sizing import WORKING_AREA
from ..embedded.text import N_TOKENS
from ..errors import HywuError
from ..generator import GeneratorConfig, ParameterGenerator, load_generator
from ..generator.release_config import read_config
from ..generator.release_sizes import released_config
from ..lora import LoraSpec
from ..tokens import TokenLayout
from .plan_backbones import BackboneSize

_PIXELS_PER_TOKEN = 16  # an autoencoder's 8, and 2 x 2 latents to a token; HunyuanImage-3.0's own 16
_SIDE = 1024  # pixels
_N_CONDITION = 1024
_SIGLIP2_DIM = 1152  # of the so400m model
_PAPER_WIDTH, _PAPER_HEADS = 4096, 32


@dataclass(frozen=True)
class TrainSize:
    """What is trained on what. S = `n_condition` tokens of a condition; R = `noise_levels` rows of each."""

    name: str
    generator: GeneratorConfig
    spec: LoraSpec
    layout: TokenLayout
    backbone: BackboneSize
    n_condition: int = _N_CONDITION
    noise_levels: int = 1
    assumptions: tuple[str, ...] = field(default=())

    def build_generator(self, n_layers: int | None = None) -> ParameterGenerator:
        """The generator, on torch's default device, with another number of blocks if one is given."""
        config = self.generator if n_layers is None else replace(self.generator, n_layers=n_layers)
        return ParameterGenerator(config, self.spec, self.layout)


def train_size(name: str, settings: Mapping[str, str]) -> TrainSize:
    """The size of a name, with `settings` changed: fields of the generator's config, `rank`, `pixels`, ...

    Raises HywuError for a name or a setting that does not exist, and for a value of no sense.
    """
    if name not in _SIZES:
        raise HywuError(f"There is no plan for '{name}'; there is one for {', '.join(_SIZES)}.")
    return _changed(_SIZES[name](), dict(settings))


def size_names() -> tuple[str, ...]:
    """All names."""
    return tuple(_SIZES)


def flux_like(module: nn.Module, kind: str, side: int, pictures: int, n_text: int) -> BackboneSize:
    """The size of a diffusers model of two streams, from its config."""
    arguments = list(inspect.signature(type(module).__init__).parameters)[1:]
    config = {key: module.config[key] for key in arguments}
    blocks = {key: config.pop(key) for key in ("num_layers", "num_single_layers") if key in config}
    return BackboneSize(kind, config, blocks, side, pictures, n_text, module.inner_dim)


def _embedded() -> TrainSize:
    generator = load_generator(GENERATOR)
    side = int(WORKING_AREA**0.5) // _PIXELS_PER_TOKEN
    backbone = flux_like(EmbeddedBackbone.load().transformer, "flux", side, 2, N_TOKENS)
    n_condition = 1 + GRID**2 + N_TOKENS
    parts = (generator.config, generator.spec, generator.layout, backbone, n_condition)
    return TrainSize("embedded_generator", *parts, noise_levels=4)


def _flux_kontext() -> TrainSize:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        module = FluxTransformer2DModel(guidance_embeds=True)
    backbone = flux_like(module, "flux", _SIDE // _PIXELS_PER_TOKEN, 2, 512)
    return _paper_generator("flux_kontext", 2e9, LoraSpec.from_module(module), backbone)


def _qwen(name: str, weights: float, rank: int) -> TrainSize:
    from diffusers import QwenImageTransformer2DModel

    with torch.device("meta"):
        module = QwenImageTransformer2DModel()
    # The instruction and the picture as Qwen2.5-VL reads it, at most 1024 tokens of 28 x 28 pixels.
    backbone = flux_like(module, "qwen_image", _SIDE // _PIXELS_PER_TOKEN, 2, 1024)
    spec = LoraSpec.from_module(module, rank=rank, alpha=rank)
    return _paper_generator(name, weights, spec, backbone)


def _paper_generator(name: str, weights: float, spec: LoraSpec, backbone: BackboneSize) -> TrainSize:
    """A generator of about so many weights "by depth" (paper, section 4) at the width of the 8.11B one."""

    def of_depth(n_layers: int) -> TrainSize:
        config = GeneratorConfig(
            _SIGLIP2_DIM,
            d_model=_PAPER_WIDTH,
            n_layers=n_layers,
            n_heads=_PAPER_HEADS,
            accumulation=4,
        )
        return TrainSize(name, config, spec, TokenLayout.for_spec(spec), backbone)

    with torch.device("meta"):
        one, two = (of_depth(n).build_generator().n_parameters for n in (1, 2))
    size = of_depth(max(1, round((weights - one) / (two - one)) + 1))
    known = f"the width {_PAPER_WIDTH} of the published 8.11B generator, so {size.generator.n_layers} blocks"
    seen = f"a condition of {_N_CONDITION} tokens of SigLIP2's {_SIGLIP2_DIM} channels"
    return replace(size, assumptions=(known, seen))


def _hunyuan_image() -> TrainSize:
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
        side=_SIDE // _PIXELS_PER_TOKEN,
        pictures=2,
        n_text=1024,
        width=modules["self_attn.o_proj"].d_out,
        assumptions=(
            "8 of the 64 experts for each token, evenly: with the shared one the published 13B of 80B",
            "a vocabulary of 133,120 words, 1,024 tokens of text, attention of all tokens to all",
        ),
    )
    return TrainSize("hunyuan_image_3", config, spec, layout, backbone)


_SIZES: dict[str, Callable[[], TrainSize]] = {
    "embedded_generator": _embedded,
    "flux_kontext": _flux_kontext,
    "qwen_image_edit": lambda: _qwen("qwen_image_edit", 2e9, 16),
    "qwen_image_edit_5b": lambda: _qwen("qwen_image_edit_5b", 5e9, 32),
    "qwen_image_edit_7b": lambda: _qwen("qwen_image_edit_7b", 7e9, 64),
    "hunyuan_image_3": _hunyuan_image,
}


def _changed(size: TrainSize, settings: dict[str, str]) -> TrainSize:
    known = {each.name: each.type for each in fields(GeneratorConfig)}
    generator: dict[str, Any] = {}
    for name, value in settings.items():
        if name in ("rank", "noise_levels", "n_condition", "pixels", "pictures", "n_text"):
            number = _number(name, value, int)
            if number < 1:
                raise HywuError(f"{name} is {number}; it must be at least 1.")
            size = _with(size, name, number)
        elif name in known and name not in ("condition_dim", "output_gain"):
            generator[name] = _number(name, value, float if "float" in str(known[name]) else int)
        else:
            raise HywuError(
                f"A plan has no setting '{name}'; it has rank, noise_levels, n_condition, pixels, pictures, "
                f"n_text, and those of the generator: d_model, n_layers, n_heads, mlp_ratio, accumulation."
            )
    return replace(size, generator=replace(size.generator, **generator))


def _with(size: TrainSize, name: str, number: int) -> TrainSize:
    if name == "rank":
        spec = replace(size.spec, rank=number, alpha=number * size.spec.scale)
        return replace(size, spec=spec)
    if name == "pixels":
        if number % _PIXELS_PER_TOKEN:
            raise HywuError(f"pixels is {number}; it must be a multiple of {_PIXELS_PER_TOKEN}.")
        return replace(size, backbone=replace(size.backbone, side=number // _PIXELS_PER_TOKEN))
    if name in ("pictures", "n_text"):
        return replace(size, backbone=replace(size.backbone, **{name: number}))
    return replace(size, **{name: number})


def _number(name: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise HywuError(f"{name} is '{value}'; it must be a number ({kind.__name__}).") from error
