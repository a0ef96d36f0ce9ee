# ruff: noqa: E402 (ComfyUI must be opened before it is imported)
"""What ComfyUI's own LoRA loader makes of the files in the work folder, judged by merged weights alone.

The work folder has `plan.json`: of every model its state dict's file or shapes, its target names, and LoRA
files with what they must do: make the weights of another model (`merged`), do what another file does
(`like`), or add the products of the factors in a file with ComfyUI's own names to zeros (`products`).
Weights of more numbers than `largest` are not computed.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from typing import Any

from open_comfy import open_comfy

WORK = open_comfy()

import comfy.lora
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from pack.hywu_core.apply.comfy import find_places
from torch import Tensor


class Unmatched(logging.Handler):
    """Counts what the loader could not place."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the sentence stock says for every key without a place."""
        if "not loaded" in record.getMessage().lower():
            self.lines.append(record.getMessage())


def open_model(model: dict[str, Any]) -> ModelPatcher:
    """From a file, or from shapes alone with zeros for weights."""
    if "file" in model:
        return comfy.sd.load_diffusion_model(str(WORK / model["file"]))
    zero = torch.zeros((), dtype=torch.bfloat16)
    state = {key: zero.expand(shape) for key, shape in model["shapes"].items()}
    return comfy.sd.load_diffusion_model_state_dict(state)


class Patched:
    """A model with a LoRA file from the stock loader."""

    def __init__(self, patcher: ModelPatcher, file: str) -> None:
        self.unmatched = Unmatched()
        logging.getLogger().addHandler(self.unmatched)
        lora = comfy.utils.load_torch_file(str(WORK / file))
        self.patcher = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)[0]
        logging.getLogger().removeHandler(self.unmatched)
        self.keys = set(self.patcher.patches)

    def __call__(self, key: str) -> Tensor:
        """A weight as stock changes it."""
        weight = weight_of(self.patcher, key).to(torch.float32, copy=True)
        return comfy.lora.calculate_weight(self.patcher.patches[key], weight, key)


class Products:
    """B @ A of every module of a file."""

    def __init__(self, file: str) -> None:
        self.lora = comfy.utils.load_torch_file(str(WORK / file))
        ending = ".lora_A.weight"
        self.keys = {key.removesuffix(ending) + ".weight" for key in self.lora if key.endswith(ending)}

    def __call__(self, key: str) -> Tensor:
        """The product of a module's factors."""
        module = key.removesuffix(".weight")
        return self.lora[f"{module}.lora_B.weight"].float() @ self.lora[f"{module}.lora_A.weight"].float()


def weight_of(patcher: ModelPatcher, key: str) -> Tensor:
    """A weight of the model as it was opened."""
    return comfy.utils.get_attr(patcher.model, key)


def examine(patcher: ModelPatcher, file: dict[str, str]) -> dict[str, Any]:
    """One file: complaints, how far its weights are from what they must be, how far from no LoRA at all."""
    found = Patched(patcher, file["name"])
    keys = found.keys
    if "merged" in file:
        expected = partial(weight_of, open_model({"file": file["merged"]}))
    else:
        expected = Patched(patcher, file["like"]) if "like" in file else Products(file["products"])
        if keys != expected.keys:
            return {"unmatched": sorted(map(str, keys ^ expected.keys))}
    gaps, changes = [], []
    for key in keys:
        if weight_of(patcher, key).numel() > file.get("largest", float("inf")):
            continue
        weight, right = found(key), expected(key)
        gaps.append(((weight - right).abs().max() / right.abs().max()).item())
        changes.append((weight - weight_of(patcher, key)).abs().max().item())  # in float32, as `weight` is
    complaints = found.unmatched.lines
    return {"unmatched": complaints, "gap": max(gaps), "changed": min(changes), "weights": len(keys)}


def main() -> dict[str, Any]:
    """Everything the test asks about, model by model."""
    answers = {}
    for name, model in json.loads((WORK / "plan.json").read_text()).items():
        patcher = open_model(model)
        weights = patcher.model.diffusion_model.state_dict().items()
        answers[name] = {
            "kind": type(patcher.model).__name__,
            "places": len(find_places(patcher.model, model["targets"])),
            "linears": sum(key.endswith(".weight") and value.dim() == 2 for key, value in weights),
            "files": {file["name"]: examine(patcher, file) for file in model["files"]},
        }
    return answers


print(json.dumps(main()))
