"""Combine Adapters: arithmetic on LoRAs."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..hywu_core.lora import Adapter
from ..hywu_core.lora.combining import OPERATIONS, combine_adapters
from .backports import search_words, shown_again
from .sockets import CATEGORY, AdapterSocket


class CombineAdapters(io.ComfyNode):
    """One or two HYWU_ADAPTERs to one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HYWU_CombineAdapters",
            display_name="Combine Adapters",
            category=CATEGORY,
            description="Mixes, adds, averages or scales LoRAs, or joins them to a batch. It computes with "
            "the updates, not with their factors: the result is exact, but for one rounding, unless max_rank "
            "bounds it.",
            inputs=[
                AdapterSocket.Input("adapter_a", tooltip="A LoRA or a batch of them."),
                AdapterSocket.Input(
                    "adapter_b",
                    optional=True,
                    tooltip="The other one; not needed to scale, or to average a batch. A single LoRA "
                    "goes with every one of the other's batch.",
                ),
                io.Combo.Input(
                    "operation",
                    options=list(OPERATIONS),
                    default="interpolate",
                    tooltip="interpolate: (1 - amount) * a + amount * b. add: a + amount * b. average: the "
                    "mean of all LoRAs of a and b. scale: amount * a. batch: the LoRAs of a, then of b.",
                ),
                io.Float.Input(
                    "amount",
                    default=0.5,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Of interpolate, add and scale; average and batch do not use it.",
                ),
                io.Int.Input(
                    "max_rank",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="0: exact; what is mixed, added or averaged has the sum of the ranks. "
                    "Else the nearest LoRA of at most this rank.",
                ),
            ],
            outputs=[
                AdapterSocket.Output(
                    display_name="adapter",
                    tooltip="For Apply Generated LoRA, Save Adapter and Inspect Adapter.",
                )
            ],
            **shown_again(),
            **search_words(
                "merge lora", "mix lora", "average lora", "interpolate", "batch lora", "混合 LoRA"
            ),
        )

    @classmethod
    def execute(
        cls,
        adapter_a: Adapter,
        operation: str,
        amount: float,
        max_rank: int,
        adapter_b: Adapter | None = None,
    ) -> io.NodeOutput:
        """Compute."""
        adapter, report = combine_adapters(operation, adapter_a, adapter_b, amount, max_rank)
        return io.NodeOutput(adapter, ui={"hywu_report": report})
