"""Load Adapter: a LoRA file, ours or a stock one, as an adapter."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io

from ..hywu_core.lora.architectures import describe_adapter
from ..hywu_core.lora.files import read_adapter
from ..hywu_core.lora.peft import CONFIG
from .backports import search_words, shown_again
from .folders import FileStates, states
from .sockets import CATEGORY, AdapterSocket

_SUFFIXES = (".safetensors", ".sft")  # what else models/loras may hold are pickles, which are never opened

_GROWTH = 1.5  # from which on it is told


class LoadAdapter(io.ComfyNode):
    """A LoRA file of `models/loras` to a HYWU_ADAPTER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        names = [n for n in folder_paths.get_filename_list("loras") if n.lower().endswith(_SUFFIXES)]
        return io.Schema(
            node_id="HYWU_LoadAdapter",
            display_name="Load Adapter",
            category=CATEGORY,
            description="Reads a LoRA file, a saved one or any plain LoRA for FLUX or Qwen-Image, to apply "
            "or combine it like a generated one.",
            inputs=[
                io.Combo.Input(
                    "adapter_name",
                    options=names,
                    tooltip="A LoRA from models/loras; of a PEFT folder, its adapter_model.safetensors.",
                )
            ],
            outputs=[
                AdapterSocket.Output(
                    display_name="adapter", tooltip="One LoRA, for Apply Generated LoRA or Combine Adapters."
                )
            ],
            **shown_again(),
            **search_words("load lora", "lora file", "peft", "kohya", "加载 LoRA"),
        )

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str | None) -> FileStates:
        """Load again when the file was replaced, or its PEFT folder's configuration; None: linked."""
        if adapter_name is None:
            return ()
        path = _path(adapter_name)
        return states([path, path.with_name(CONFIG)])

    @classmethod
    def execute(cls, adapter_name: str) -> io.NodeOutput:
        """Read the file."""
        adapter, skipped, growth = read_adapter(_path(adapter_name))
        report = [describe_adapter(adapter)]
        if skipped:
            report.append(
                f"Left out {skipped} tensors for text encoders: an adapter is for the model. "
                "Load LoRA applies them too."
            )
        if growth >= _GROWTH:
            report.append(
                f"Its layers have different ranks; with all of them filled up to {adapter.rank} it takes "
                f"{growth:.1f} times the memory, and Save Adapter writes it so."
            )
        return io.NodeOutput(adapter, ui={"hywu_report": report})


def _path(name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise("loras", name))
