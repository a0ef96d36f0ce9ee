"""Folders in the release's format, made of the golden numbers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent / "golden"
INDEX = "model.safetensors.index.json"


class Golden:
    """One of the files in `golden`, see the README there."""

    def __init__(self, name: str) -> None:
        tensors = load_file(GOLDEN / f"{name}.safetensors")
        with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
            self.config = json.loads(file.metadata()["config"])
            self.scale = float(file.metadata()["scale"])
        self.weights = self.part(tensors, "weights.")
        self.condition = tensors["condition"]
        self.outputs = {
            dtype: self.part(tensors, f"{str(dtype).removeprefix('torch.')}.")
            for dtype in (torch.float32, torch.bfloat16)
        }

    @staticmethod
    def part(tensors, prefix):
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    def write(self, folder: Path, n_shards: int) -> Path:
        """A release with the tensors dealt to the shards one by one, so that no fused matrix is in one."""
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.config))
        if n_shards == 1:
            save_file(self.weights, folder / "model.safetensors")
            return folder
        names = [f"model-{i + 1:05}-of-{n_shards:05}.safetensors" for i in range(n_shards)]
        weight_map = {name: names[i % n_shards] for i, name in enumerate(self.weights)}
        for shard in names:
            save_file({n: t for n, t in self.weights.items() if weight_map[n] == shard}, folder / shard)
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return folder
