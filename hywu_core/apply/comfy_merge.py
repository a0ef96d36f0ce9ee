"""An adapter merged into a ComfyUI model's weights, as stock LoRA loaders do. Only ComfyUI can import this.

Merging costs nothing while sampling, but the whole model is patched anew for every adapter, and there is one
for all images and both branches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import comfy.lora
from comfy.model_patcher import ModelPatcher

from ..lora import Adapter
from .comfy_places import Place, key_table

# Of the adapted modules' own multiplications. Below it a side path costs less in all the steps of a usual
# sampling than patching the model anew does once, and every image brings another adapter.
DEAREST_SIDE_PATH = 0.25


def merged(
    patcher: ModelPatcher, adapter: Adapter, places: Mapping[str, Place], strength: float
) -> ModelPatcher:
    """A clone of the patcher with the adapter's only LoRA among its weight patches."""
    table = key_table(patcher.model)
    rounds: list[
        dict[Any, Any]
    ] = []  # two targets of one weight need two calls: a dict holds each weight once
    for target, place in places.items():
        A, B = adapter[target]
        factors = {
            f"{place.name}.lora_A.weight": A[0].detach().cpu().contiguous(),
            f"{place.name}.lora_B.weight": (B[0].detach().float() * adapter.scale).cpu().contiguous(),
        }
        for weight, patch in comfy.lora.load_lora(factors, {place.name: table[place.name]}).items():
            free = next((patches for patches in rounds if weight not in patches), None)
            if free is None:
                rounds.append(free := {})
            free[weight] = patch
    clone = patcher.clone()
    for patches in rounds:
        clone.add_patches(patches, strength)
    return clone


def relative_cost(adapter: Adapter, places: Iterable[Place]) -> float:
    """The side path's multiplications over the adapted modules' own, for each position."""
    places = list(places)
    modules = {place.module: place.d_in * place.d_out for place in places}
    return sum(adapter.rank * (place.d_in + place.length) for place in places) / sum(modules.values())
