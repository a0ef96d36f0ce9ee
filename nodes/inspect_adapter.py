"""Inspect Adapter: where a LoRA changes the model, and how much."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.v0_0_2 import io

from ..hywu_core.heat_map import draw_heat_map
from ..hywu_core.lora import Adapter
from ..hywu_core.lora.inspection import inspect
from .backports import search_words
from .heat_maps import as_shown
from .sockets import CATEGORY, AdapterSocket


class InspectAdapter(io.ComfyNode):
    """One or two HYWU_ADAPTERs to a heat map as IMAGE and a summary."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HYWU_InspectAdapter",
            display_name="Inspect Adapter",
            category=CATEGORY,
            description="Draws how strongly a LoRA changes every module in every layer; with a second one, "
            "both and their difference on one scale.",
            is_output_node=True,
            inputs=[
                AdapterSocket.Input("adapter", tooltip="The LoRA to look at, or a batch of them."),
                AdapterSocket.Input(
                    "other",
                    optional=True,
                    tooltip="Another one for the same model, to stand beside it. Of two batches the LoRAs of "
                    "the same index are compared.",
                ),
                io.Int.Input(
                    "index", default=0, min=0, max=4095, tooltip="Which LoRA of the batch, counted from 0."
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="heat_map", tooltip="The picture, for Save Image or Preview Image."
                ),
                io.String.Output(
                    display_name="summary", tooltip="Sizes, norms and what is changed most, in words."
                ),
            ],
            **search_words("heat map", "lora norm", "compare lora", "lora weights", "visualize lora"),
        )

    @classmethod
    def execute(cls, adapter: Adapter, index: int, other: Adapter | None = None) -> io.NodeOutput:
        """Look, draw and tell."""
        found = inspect(adapter, other, index)
        picture = np.asarray(draw_heat_map(found.tables), dtype=np.float32) / 255
        shown = {
            "hywu_heat_map": as_shown(found.tables),
            "hywu_report": [line for line in found.lines if line],
        }
        return io.NodeOutput(torch.from_numpy(picture)[None], "\n".join(found.lines), ui=shown)
