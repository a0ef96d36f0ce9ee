"""Load HY-WU Generator."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io
from torch import nn

from ..hywu_core.generator import load_generator
from .folders import GENERATORS
from .sockets import CATEGORY, GeneratorSocket, LoadedGenerator


class LoadGenerator(io.ComfyNode):
    """A generator file to a HYWU_GENERATOR."""

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
                    options=folder_paths.get_filename_list(GENERATORS),
                    tooltip="A generator from models/hywu, or the small one that comes with the pack.",
                )
            ],
            outputs=[GeneratorSocket.Output(display_name="generator")],
        )

    @classmethod
    def fingerprint_inputs(cls, generator_name: str) -> float:
        """Load again when the file was replaced, by a longer training say."""
        return _path(generator_name).stat().st_mtime

    @classmethod
    def execute(cls, generator_name: str) -> io.NodeOutput:
        """Read the file."""
        generator = load_generator(_path(generator_name)).eval().requires_grad_(False)
        # In a holder, because ModelPatcher assigns attributes (`device`, say) to the module it manages.
        patcher = ModelPatcher(
            nn.ModuleList([generator]),
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
        return io.NodeOutput(LoadedGenerator(generator, patcher))


def _path(name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise(GENERATORS, name))
