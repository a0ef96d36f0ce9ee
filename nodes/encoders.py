"""Condition encoders inside ComfyUI: loaded when needed, counted and freed like any model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from weakref import WeakValueDictionary

import comfy.model_management
import folder_paths
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..hywu_core.conditions import ConditionEncoder, SigLIP2Encoder, load_encoder
from ..hywu_core.conditions.embedded import EmbeddedConditionEncoder
from .folders import GENERATORS
from .sockets import LoadedGenerator


@dataclass(frozen=True, eq=False)
class LoadedEncoder:
    """An encoder, and the patcher by which ComfyUI loads and frees it; small ones stay on the CPU without."""

    encoder: ConditionEncoder
    patcher: ModelPatcher | None


# Generators with one encoder share it. It lives as long as one of them does, which ComfyUI decides.
_shared: WeakValueDictionary[str, LoadedEncoder] = WeakValueDictionary()


@cache
def embedded_encoder() -> EmbeddedConditionEncoder:
    """The encoders that come with the pack: small enough to stay."""
    return EmbeddedConditionEncoder.load()


def encoder_for(generator: LoadedGenerator, download: bool = False) -> ConditionEncoder:
    """The encoder the generator learned with, on the device where it computes.

    Read from `models/hywu` or the Hugging Face cache; the network is used only to `download`. Raises
    HywuError for one that this version does not have or that is not there.
    """
    key = repr(sorted(generator.generator.encoder_info.items()))
    loaded = generator.encoders.get(key) or _shared.get(key) or _load(generator, download)
    _shared[key] = generator.encoders[key] = loaded
    if loaded.patcher is not None:
        comfy.model_management.load_models_gpu([loaded.patcher], force_full_load=True)
    return loaded.encoder


def _load(generator: LoadedGenerator, download: bool) -> LoadedEncoder:
    info = generator.generator.encoder_info
    if info.get("kind") == EmbeddedConditionEncoder.kind:
        EmbeddedConditionEncoder.recognise(info)
        return LoadedEncoder(embedded_encoder(), None)
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(GENERATORS)]
    encoder = load_encoder(info, folders, download)
    if not isinstance(encoder, SigLIP2Encoder):
        return LoadedEncoder(encoder, None)
    # In a holder, because ModelPatcher assigns attributes to the module it manages.
    patcher = ModelPatcher(
        nn.ModuleList([encoder.model]),
        load_device=comfy.model_management.text_encoder_device(),
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )
    return LoadedEncoder(encoder, patcher)
