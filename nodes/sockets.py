"""The pack's socket types, and how ComfyUI's values look to `hywu_core`."""

from __future__ import annotations

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..hywu_core.generator import ParameterGenerator

GeneratorSocket = io.Custom("HYWU_GENERATOR")
ConditionSocket = io.Custom("HYWU_CONDITION")
AdapterSocket = io.Custom("HYWU_ADAPTER")

CATEGORY = "HY-WU"


@dataclass(frozen=True, eq=False)
class LoadedGenerator:
    """What a HYWU_GENERATOR is: the generator, and the patcher by which ComfyUI loads and frees it."""

    generator: ParameterGenerator
    patcher: ModelPatcher


def pixels(image: Tensor) -> Tensor:
    """An IMAGE (B, H, W, C) in [0, 1] as (B, 3, H, W); an alpha channel is left out."""
    return image[..., :3].movedim(-1, 1)
