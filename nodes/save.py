"""Save Adapter: a generated LoRA as a file that stock loaders read."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch
from comfy_api.v0_0_2 import io, ui

from ..hywu_core.lora import Adapter, save_adapter
from ..hywu_core.storage import path_inside
from .sockets import CATEGORY, AdapterSocket

_DTYPES = {
    "as generated": None,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class SaveAdapter(io.ComfyNode):
    """A HYWU_ADAPTER to a `.safetensors` file in `models/loras`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HYWU_SaveAdapter",
            display_name="Save Adapter",
            category=CATEGORY,
            description="Saves a generated LoRA to models/loras, where stock loaders find it. "
            "Files are numbered and never overwritten.",
            is_output_node=True,
            inputs=[
                AdapterSocket.Input("adapter"),
                io.String.Input(
                    "filename_prefix",
                    default="hywu/lora",
                    tooltip="Name in models/loras, with subfolders if you like; a number is added.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="Baked into the file."
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(_DTYPES),
                    default="as generated",
                    tooltip="Number format of the file; float16 and bfloat16 halve a float32.",
                ),
                io.Int.Input("index", default=0, min=0, max=4095, tooltip="Which LoRA of a batch."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(
        cls, adapter: Adapter, filename_prefix: str, strength: float, dtype: str, index: int
    ) -> io.NodeOutput:
        """Write the file; the node shows its name."""
        loras = Path(folder_paths.get_folder_paths("loras")[0])
        path = save_adapter(adapter, free_path(loras, filename_prefix), index, strength, _DTYPES[dtype])
        return io.NodeOutput(ui=ui.PreviewText(path.relative_to(loras).as_posix()))


def free_path(folder: Path, prefix: str) -> Path:
    """`folder/prefix_00001_.safetensors`, or the next number that is free; its folder is made if need be.

    Raises HywuError for a prefix that is empty or leads out of the folder.
    """
    path_inside(folder, prefix)
    parent, name, number, _subfolder, _prefix = folder_paths.get_save_image_path(prefix, str(folder))
    while (path := Path(parent) / f"{name}_{number:05}_.safetensors").exists():
        number += 1
    return path
