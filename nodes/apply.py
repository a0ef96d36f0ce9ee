"""Apply Generated LoRA."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io

from ..hywu_core.apply.comfy import apply_adapter
from ..hywu_core.lora import Adapter
from .sockets import CATEGORY, AdapterSocket


class ApplyLoRA(io.ComfyNode):
    """A MODEL with a HYWU_ADAPTER beside it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HYWU_ApplyLoRA",
            display_name="Apply Generated LoRA",
            category=CATEGORY,
            description="Runs the model with the generated LoRA beside it. Base weights are never patched: "
            "another LoRA for the next image costs nothing, and a batch can have one for each image.",
            inputs=[
                io.Model.Input("model", tooltip="The model the generator was made for."),
                AdapterSocket.Input(
                    "adapter", tooltip="One LoRA for all images, or one for each image of the batch."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Factor on the LoRA; 0 leaves the model as it is.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, adapter: Adapter, strength: float) -> io.NodeOutput:
        """Clone the model's patcher and put the LoRA beside it."""
        return io.NodeOutput(apply_adapter(model, adapter, strength) if strength else model)
