"""What the recipes train when nothing is said, for a plan: their own generators, targets and batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..backbones.embedded import EmbeddedBackbone
from ..backbones.registry import backbone_class
from ..conditions.embedded import CONDITION_DIM, GRID
from ..embedded import GENERATOR
from ..embedded.sizing import WORKING_AREA
from ..embedded.text import N_TOKENS
from ..generator import GeneratorConfig, load_generator
from ..lora import LoraSpec
from ..tokens import TokenLayout
from .given import begin
from .paired_recipe import BACKBONE_TEXT, GENERATOR_SETTINGS, target_patterns
from .plan_backbones import flux, longcat, qwen_image
from .plan_sizes import PIXELS_PER_TOKEN, SIDE, TrainSize, flux_like
from .recipes import demo_training, recipe

# SigLIP2 so400m as `SigLIP2Encoder` reads with it: channels, tokens of a picture and of an instruction.
_SIGLIP2_DIM, _SIGLIP2_PICTURE, _SIGLIP2_TEXT = 1152, 256, 64


@dataclass(frozen=True)
class Published:
    """A published backbone: its class, what its config says that the class does not, its text's length."""

    kind: str
    build: Callable[[Mapping[str, Any]], nn.Module]
    config: Mapping[str, Any]
    n_text: int
    assumptions: tuple[str, ...] = ()


BACKBONES = {
    "flux_kontext": Published("flux", flux, {"guidance_embeds": True}, 512),
    "qwen_image_edit": Published(
        "qwen_image", qwen_image, {}, 1024, ("an instruction and its picture of 1,024 tokens",)
    ),
    "longcat_image_edit": Published(
        "longcat",
        longcat,
        {"num_layers": 10, "num_single_layers": 20},
        512 + 324,
        ("10 double and 20 single blocks", "a picture of 324 tokens beside the 512 of the instruction"),
    ),
}


def embedded_demo() -> TrainSize:
    """The small generator of the demonstration, on its small pictures."""
    settings = recipe("embedded_demo").settings
    config = demo_training(settings)
    transformer = EmbeddedBackbone.load().transformer
    spec, layout = config.adapts(transformer)
    generator = config.generator(CONDITION_DIM)
    return _embedded("embedded_demo", generator, spec, layout, transformer, settings["size"])


def embedded_generator() -> TrainSize:
    """The shipped generator on pictures of the size that it learned with."""
    shipped = load_generator(GENERATOR)
    parts = (shipped.config, shipped.spec, shipped.layout, EmbeddedBackbone.load().transformer)
    return _embedded("embedded_generator", *parts, int(WORKING_AREA**0.5))


def _embedded(
    name: str,
    config: GeneratorConfig,
    spec: LoraSpec,
    layout: TokenLayout,
    transformer: nn.Module,
    pixels: int,
) -> TrainSize:
    """A generator on the shipped backbone, which stays in float32 as its file has it."""
    backbone = flux_like(transformer, "flux", pixels // PIXELS_PER_TOKEN, 2, N_TOKENS)
    trained = recipe(name)
    return TrainSize(
        name,
        config,
        spec,
        layout,
        backbone,
        n_condition=1 + GRID**2 + N_TOKENS,
        noise_levels=trained.settings["noise_levels"],
        batch_size=trained.defaults.batch_size,
        frozen="fp32",
    )


def paired(kind: str, given: Mapping[str, str]) -> TrainSize:
    """What `--recipe kind` trains with these settings of a run, read and checked as the run itself does.

    Raises HywuError for a setting that the recipe does not have, and for a value of no sense.
    """
    config, settings = begin(recipe(kind), dict(given))
    known = BACKBONES[kind]
    with torch.device("meta"):
        module = known.build(known.config)
    side = round(settings["resolution"] / PIXELS_PER_TOKEN) or SIDE
    backbone = flux_like(module, known.kind, side, 2, known.n_text)
    dim, n_condition = _SIGLIP2_DIM, _SIGLIP2_PICTURE + _SIGLIP2_TEXT
    seen = f"SigLIP2's {n_condition} tokens of {dim} channels for a picture and its instruction"
    if settings["encoder"] == BACKBONE_TEXT:
        dim, n_condition = module.config["joint_attention_dim"], known.n_text
        seen = f"the backbone's own {n_condition} tokens of {dim} channels"
    spec = LoraSpec.from_module(
        module,
        include=target_patterns(settings, backbone_class(kind)),
        rank=settings["rank"],
        alpha=settings["alpha"],
    )
    return TrainSize(
        kind,
        GeneratorConfig(dim, **{name: settings[name] for name in GENERATOR_SETTINGS}),
        spec,
        TokenLayout.for_spec(spec),
        backbone,
        n_condition,
        settings["noise_levels"],
        config.batch_size,
        ("one control picture", f"a condition of {seen}", *known.assumptions),
    )
