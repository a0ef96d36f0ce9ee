"""Save Adapter: generated LoRAs as files that stock loaders read."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import folder_paths
import torch
from comfy_api.v0_0_2 import io

from ..hywu_core.lora import Adapter, save_adapter, save_peft
from ..hywu_core.lora.architectures import describe_adapter
from ..hywu_core.lora.files import check_saving
from ..hywu_core.lora.keys import resolve_format
from ..hywu_core.lora.numbered import save_all_numbered
from .backports import search_words
from .sockets import CATEGORY, AdapterSocket

_DTYPES = {
    "as generated": None,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_WRITERS = {"LoRA file": (save_adapter, ".safetensors"), "PEFT folder": (save_peft, "")}
_ALL = -1
_LINES = 8  # of a report on a batch


class SaveAdapter(io.ComfyNode):
    """A HYWU_ADAPTER to numbered files in `models/loras` or the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs."""
        return io.Schema(
            node_id="HYWU_SaveAdapter",
            display_name="Save Adapter",
            category=CATEGORY,
            description="Saves a generated LoRA where stock loaders find it. Files are numbered and never "
            "overwritten.",
            is_output_node=True,
            inputs=[
                AdapterSocket.Input("adapter", tooltip="The LoRA to save, or a batch of them."),
                io.String.Input(
                    "filename_prefix",
                    default="hywu/lora",
                    tooltip="Name in the destination folder, with subfolders and %year%, %month%, %day%, "
                    "%hour%, %minute%, %second% if you like; a number is added.",
                ),
                io.Combo.Input(
                    "destination",
                    options=["loras", "output"],
                    default="loras",
                    tooltip="loras: models/loras, where Load LoRA and Load Adapter find it. output: the "
                    "output folder.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(_WRITERS),
                    default="LoRA file",
                    tooltip="LoRA file: one .safetensors for ComfyUI and diffusers. PEFT folder: "
                    "adapter_config.json and adapter_model.safetensors, for PEFT.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Baked into the file: loaded with strength 1, it acts like this one here.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(_DTYPES),
                    default="as generated",
                    tooltip="Number format of the file; float16 and bfloat16 halve a float32.",
                ),
                io.Int.Input(
                    "index",
                    default=0,
                    min=_ALL,
                    max=4095,
                    tooltip="Which LoRA of the batch, counted from 0; -1 saves every one, in a file each.",
                ),
                io.Boolean.Input(
                    "include_prompt",
                    default=False,
                    tooltip="Write the instruction into the file's header, readable by everyone who gets the "
                    "file.",
                ),
            ],
            outputs=[],
            **search_words("export lora", "lora file", "peft", "保存 LoRA"),
        )

    @classmethod
    def execute(
        cls,
        adapter: Adapter,
        filename_prefix: str,
        destination: str,
        format: str,
        strength: float,
        dtype: str,
        index: int,
        include_prompt: bool,
    ) -> io.NodeOutput:
        """Write the files; the node shows their names."""
        loras = destination == "loras"
        folder = Path(
            folder_paths.get_folder_paths("loras")[0] if loras else folder_paths.get_output_directory()
        )
        save, suffix = _WRITERS[format]
        settings = {"strength": strength, "dtype": _DTYPES[dtype]}
        if index == _ALL:  # before the first file: all of them or none
            check_saving(adapter, **settings, key_format="auto" if save is save_adapter else None)
        settings |= {"include_prompt": include_prompt, "new": True}
        numbers = range(adapter.batch) if index == _ALL else [index]
        writes = [partial(save, adapter, index=number, **settings) for number in numbers]
        paths = save_all_numbered(folder, filename_prefix, suffix, writes)
        names = [path.relative_to(folder.resolve()).as_posix() for path in paths]
        where = "models/loras" if loras else "the output folder"
        report = [f"Saved {name} to {where}" for name in names[:_LINES]]
        if len(names) > _LINES:
            report.append(f"and {len(names) - _LINES} more, up to {names[-1]}")
        report.append(describe_adapter(adapter))
        if format == "PEFT folder":
            report.append("For PEFT and Load Adapter; ComfyUI's own loaders do not read PEFT's names")
        elif resolve_format("auto", adapter, adapter.provenance.get("key_format")) == "native":
            report.append("Only Load Adapter reads it: stock loaders have no names for this backbone")
        return io.NodeOutput(ui={"text": names, "hywu_report": report})
