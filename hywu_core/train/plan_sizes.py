"""What a plan is made for: a generator, what it adapts, and the backbone, as plain data."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace

from torch import nn

from ..generator import GeneratorConfig, ParameterGenerator
from ..lora import LoraSpec
from ..tokens import TokenLayout
from .plan_backbones import BackboneSize

PIXELS_PER_TOKEN = 16  # an autoencoder's 8, and 2 x 2 latents to a token; HunyuanImage-3.0's own 16
SIDE = 1024 // PIXELS_PER_TOKEN  # tokens along a side of the pictures that large backbones learned


@dataclass(frozen=True)
class TrainSize:
    """What is trained on what.

    n_condition: S, tokens of a condition.  noise_levels: R, rows of each.  batch_size: the recipe's own; a
    plan takes the next that its GPUs can share.  frozen: how the backbone is kept by default.
    """

    name: str
    generator: GeneratorConfig
    spec: LoraSpec
    layout: TokenLayout
    backbone: BackboneSize
    n_condition: int
    noise_levels: int = 1
    batch_size: int = 1
    assumptions: tuple[str, ...] = field(default=())
    frozen: str = "bf16"

    def build_generator(self, n_layers: int | None = None) -> ParameterGenerator:
        """The generator, on torch's default device, with another number of blocks if one is given."""
        config = self.generator if n_layers is None else replace(self.generator, n_layers=n_layers)
        return ParameterGenerator(config, self.spec, self.layout)


def flux_like(module: nn.Module, kind: str, side: int, pictures: int, n_text: int) -> BackboneSize:
    """The size of a diffusers model of two streams, from its config."""
    arguments = list(inspect.signature(type(module).__init__).parameters)[1:]
    config = {key: module.config[key] for key in arguments}
    blocks = {key: config.pop(key) for key in ("num_layers", "num_single_layers") if key in config}
    return BackboneSize(kind, config, blocks, side, pictures, n_text, module.inner_dim)
