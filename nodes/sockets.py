"""The pack's socket types, and how ComfyUI's values look to `hywu_core`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..hywu_core.conditions import lines_of
from ..hywu_core.generation_cache import MemoryCache
from ..hywu_core.generator import ParameterGenerator
from ..hywu_core.generator.fingerprint import fingerprint

GeneratorSocket = io.Custom("HYWU_GENERATOR")
ConditionSocket = io.Custom("HYWU_CONDITION")
AdapterSocket = io.Custom("HYWU_ADAPTER")

CATEGORY = "HY-WU"


@dataclass(eq=False)
class LoadedGenerator:
    """What a HYWU_GENERATOR is: the generator, and the patcher by which ComfyUI loads and frees it.

    encoders, kept: what was loaded and generated for it, and goes with it (see `encoders.py`, `kept.py`).
    """

    generator: ParameterGenerator
    patcher: ModelPatcher
    encoders: dict[str, Any] = field(default_factory=dict)
    kept: MemoryCache | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides its LoRAs, computed when it is first needed."""
        return fingerprint(self.generator)


def per_line_input() -> io.Boolean.Input:
    """The widget by which a prompt becomes a list of instructions."""
    return io.Boolean.Input(
        "one_prompt_per_line",
        default=False,
        optional=True,
        tooltip="Every line of the prompt is an instruction of its own; empty ones are left out.",
    )


def instructions(prompt: list[str], per_line: bool) -> list[str]:
    """The instructions of a prompt or a list of them, by that widget; HywuError where a line needs words."""
    return lines_of(prompt) if per_line else list(prompt)


def pixels(image: Tensor) -> Tensor:
    """An IMAGE (B, H, W, C) in [0, 1] as (B, 3, H, W); an alpha channel is left out."""
    return image[..., :3].movedim(-1, 1)
