"""A node pack for the test servers: tensors of a trainer's cache into a graph, and a graph's out of it.

Copied into a server's custom_nodes; not part of the pack. Latents are handed over as the transformer takes
them, and so stand for what VAE Encode and VAE Decode would have beside it.
"""

from pathlib import Path

import folder_paths
import torch
from safetensors.torch import load_file, save_file


class ReadEdit:
    """What encoders made of an edit, as ComfyUI's own nodes would give it, and an empty latent."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING", "LATENT"), "read", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "file": ("STRING", {})}}

    def read(self, model, file):
        tensors = load_file(Path(folder_paths.get_input_directory()) / file)
        frames = model.model.latent_format.latent_dimensions == 3

        def as_encoded(latent):
            return model.model.process_latent_out(latent.unsqueeze(2) if frames else latent)

        controls = [as_encoded(tensors[name]) for name in sorted(tensors) if name.startswith("control_")]
        names = {"pooled": "pooled_output", "mask": "attention_mask"}
        extras = {known: tensors[name] for name, known in names.items() if name in tensors}
        empty = torch.zeros_like(as_encoded(tensors["noise"]))
        return [[tensors["embeds"], extras | {"reference_latents": controls}]], {"samples": empty}


class WriteTensors:
    """Latents with their model, times and a condition of a run to a file in the output folder."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "write", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        given = {"samples": ("LATENT",), "sigmas": ("SIGMAS",), "condition": ("HYWU_CONDITION",)}
        return {"required": {"file": ("STRING", {})}, "optional": {"model": ("MODEL",)} | given}

    def write(self, file, model=None, samples=None, sigmas=None, condition=None):
        tensors = {}
        if samples is not None:
            tensors["latent"] = model.model.process_latent_in(samples["samples"])
        if sigmas is not None:
            tensors["sigmas"] = sigmas
        if condition is not None:
            tensors["tokens"] = condition.tokens
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, Path(folder_paths.get_output_directory()) / file)
        return {}


NODE_CLASS_MAPPINGS = {"HywuTestReadEdit": ReadEdit, "HywuTestWriteTensors": WriteTensors}
