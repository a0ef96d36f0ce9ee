"""Load HY-WU Generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io
from torch import nn

from ..hywu_core.errors import HywuError
from ..hywu_core.generator import load_generator
from ..hywu_core.generator.release import CONFIG, is_release
from .backports import search_words
from .folders import GENERATORS, FileStates, states
from .sockets import CATEGORY, GeneratorSocket, LoadedGenerator

# What the widget says, and how the core is asked for it.
PRECISIONS: dict[str, dict[str, Any]] = {
    "as in the file": {},
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"quantize": "int8"},
    "fp8": {"quantize": "fp8"},
}
AS_STORED = next(iter(PRECISIONS))


class LoadGenerator(io.ComfyNode):
    """A generator file, or a folder as released, to a HYWU_GENERATOR."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HYWU_LoadGenerator",
            display_name="Load HY-WU Generator",
            category=CATEGORY,
            description="Loads the transformer that writes a LoRA for an image and an instruction.",
            inputs=[
                io.Combo.Input(
                    "generator_name",
                    options=generator_names(),
                    tooltip="A generator from models/hywu: a file, or a folder with config.json and its "
                    "shards as downloaded. Or the small one that comes with the pack.",
                ),
                # Optional, so that graphs from before there was a choice still run.
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default=AS_STORED,
                    optional=True,
                    tooltip="How to keep its weights in memory. int8 takes half of bfloat16 and changes the "
                    "LoRA by less than 1 %; fp8 takes as much and changes it by about 2 %. The released "
                    "generator needs 16 GB in bfloat16 and 8.2 GB in int8. What a file stores in int8 or fp8 "
                    "stays so.",
                ),
            ],
            outputs=[
                GeneratorSocket.Output(
                    display_name="generator", tooltip="For HY-WU Condition and Generate LoRA."
                )
            ],
            **search_words("hypernetwork", "hy-wu", "weight unleashing", "load generator", "生成器"),
        )

    @classmethod
    def fingerprint_inputs(cls, generator_name: str | None, precision: str | None = AS_STORED) -> FileStates:
        """Load again when a file was replaced, by a longer training say; of a linked name None is known."""
        if generator_name is None:
            return ()
        path = _path(generator_name)
        return states(path.iterdir() if path.is_dir() else [path])

    @classmethod
    def execute(cls, generator_name: str, precision: str = AS_STORED) -> io.NodeOutput:
        """Read the file or the folder."""
        device = comfy.model_management.get_torch_device()
        if precision == "fp8" and device.type == "mps":
            raise HywuError(
                "Apple's GPUs have no 8-bit floating point; choose int8, which is also more exact."
            )
        generator = load_generator(_path(generator_name), **PRECISIONS[precision])
        # In a holder, because ModelPatcher assigns attributes (`device`, say) to the module it manages.
        patcher = ModelPatcher(
            nn.ModuleList([generator.eval().requires_grad_(False)]),
            load_device=device,
            offload_device=comfy.model_management.unet_offload_device(),
        )
        return io.NodeOutput(LoadedGenerator(generator, patcher))


def generator_names() -> list[str]:
    """What can be picked: files by their names, and a folder in the release's format once, by its own.

    Files inside any other model's folder, a condition encoder's for example, are not generators.
    """
    names: dict[str, None] = {}
    for name in folder_paths.get_filename_list(GENERATORS):
        path = folder_paths.get_full_path(GENERATORS, name)
        if path is None:  # gone since it was listed
            continue
        # A name is the path below the model folder: these are the folders on the way, the nearest first.
        inside = zip(Path(name).parents[:-1], Path(path).parents, strict=False)
        owner = next(((str(n), folder) for n, folder in inside if (folder / CONFIG).is_file()), None)
        if owner is None:
            names[name] = None
        elif is_release(owner[1]):
            names[owner[0]] = None
    return list(names)


def _path(name: str) -> Path:
    """The file or folder of a name in the list, in whichever model folder it is."""
    if file := folder_paths.get_full_path(GENERATORS, name):
        return Path(file)
    for root in folder_paths.get_folder_paths(GENERATORS):
        folder = Path(root) / name
        if name and ".." not in Path(name).parts and is_release(folder):
            return folder
    raise HywuError(
        f"There is no generator {name!r} in models/{GENERATORS}; refresh the list and pick one again."
    )
