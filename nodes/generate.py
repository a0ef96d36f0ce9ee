"""Generate LoRA: one pass of the generator."""

from __future__ import annotations

import comfy.model_management
from comfy_api.v0_0_2 import io

from ..hywu_core.apply.comfy import lora_model
from ..hywu_core.conditions import Condition
from ..hywu_core.generate import generate
from .sockets import CATEGORY, AdapterSocket, ConditionSocket, GeneratorSocket, LoadedGenerator


class GenerateLoRA(io.ComfyNode):
    """A HYWU_CONDITION to a HYWU_ADAPTER and core's LORA_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HYWU_GenerateLoRA",
            display_name="Generate LoRA",
            category=CATEGORY,
            description="Writes a LoRA for the condition in one pass of the generator; nothing is trained.",
            inputs=[GeneratorSocket.Input("generator"), ConditionSocket.Input("condition")],
            outputs=[
                AdapterSocket.Output(
                    display_name="adapter", tooltip="One LoRA for each condition, for Apply Generated LoRA."
                ),
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="The first of them, for the core nodes that take a LoRA model.",
                ),
            ],
        )

    @classmethod
    def execute(cls, generator: LoadedGenerator, condition: Condition) -> io.NodeOutput:
        """Generate."""
        comfy.model_management.load_models_gpu([generator.patcher], force_full_load=True)
        adapter = generate(generator.generator, condition).to(device=generator.patcher.offload_device)
        return io.NodeOutput(adapter, lora_model(adapter))
