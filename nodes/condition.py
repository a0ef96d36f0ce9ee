"""HY-WU Condition: what the generator is told about one edit."""

from __future__ import annotations

from functools import cache

import torch
from comfy_api.v0_0_2 import io

from ..hywu_core.conditions.embedded import EmbeddedConditionEncoder
from ..hywu_core.errors import HywuError
from .sockets import CATEGORY, ConditionSocket, GeneratorSocket, LoadedGenerator, pixels

_ENCODERS = {encoder.kind: encoder for encoder in (EmbeddedConditionEncoder,)}


@cache
def encoder_of_kind(kind: str) -> EmbeddedConditionEncoder:
    """The condition encoder a generator file names, loaded once; HywuError for an unknown one."""
    if kind not in _ENCODERS:
        raise HywuError(
            f"This generator reads conditions of the encoder '{kind}', which this version does not have; it "
            "has "
            f"{', '.join(sorted(_ENCODERS))}. Update HY-WU or load another generator."
        )
    return _ENCODERS[kind].load()


class EncodeCondition(io.ComfyNode):
    """Images and an instruction to a HYWU_CONDITION."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HYWU_Condition",
            display_name="HY-WU Condition",
            category=CATEGORY,
            description="Encodes an image and an instruction with the encoder the generator learned with.",
            inputs=[
                GeneratorSocket.Input("generator", tooltip="Decides which encoder is used."),
                io.Image.Input("image", tooltip="What is to be edited. A batch gives a condition for each."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to do with the image, in your own words.",
                ),
            ],
            outputs=[ConditionSocket.Output(display_name="condition")],
        )

    @classmethod
    def execute(cls, generator: LoadedGenerator, image: torch.Tensor, prompt: str) -> io.NodeOutput:
        """Encode."""
        encoder = encoder_of_kind(str(generator.generator.encoder_info.get("kind")))
        return io.NodeOutput(encoder.encode(pixels(image), [prompt] * len(image)))
