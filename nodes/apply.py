"""Apply Generated LoRA."""

from __future__ import annotations

from typing import get_args

from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io

from ..hywu_core.apply.comfy import Branch, Mode, Where, apply_adapter
from ..hywu_core.lora import Adapter
from .backports import search_words, shown_again
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
            description="Runs the model with the generated LoRA beside it. As a side path it patches no "
            "base weight: another LoRA for the next image costs nothing, and a batch can have one for each "
            "image.",
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
                _percent("start_percent", 0.0, "When in sampling the LoRA begins to act; 0 is the start."),
                _percent("end_percent", 1.0, "When in sampling the LoRA stops to act; 1 is the end."),
                io.Combo.Input(
                    "branch",
                    options=list(get_args(Branch)),
                    default="both",
                    tooltip="Which conditioning runs with the LoRA: positive, negative, or both.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(get_args(Mode)),
                    default="auto",
                    tooltip="side path: beside the model, nothing is patched. merge: into the weights, as "
                    "stock loaders do; takes one LoRA, both branches and all of sampling. auto: the side "
                    "path, but a merge where the rank is so large that the side path would cost more than "
                    "a quarter of the adapted layers, and for layers that it does not reach.",
                ),
                AdapterSocket.Input(
                    "negative_adapter",
                    optional=True,
                    tooltip="Another LoRA for the negative conditioning; the first then serves the positive.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The same model, with the LoRA beside it.")
            ],
            **shown_again(),
            **search_words("load lora", "lora loader", "bypass lora", "batch lora", "应用 LoRA"),
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        adapter: Adapter,
        strength: float,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        branch: Branch = "both",
        mode: Mode = "auto",
        negative_adapter: Adapter | None = None,
    ) -> io.NodeOutput:
        """Clone the model's patcher and put the LoRA beside it."""
        where = Where(branch, start_percent, end_percent, mode)
        applied = apply_adapter(model, adapter, strength, where, negative_adapter)
        return io.NodeOutput(applied.model, ui={"hywu_report": applied.report})


def _percent(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip)
