"""Which backbones there are, by the kind that recipes and generator files name, or by what a folder holds."""

from __future__ import annotations

from pathlib import Path

from ..errors import HywuError
from .base import EditBackbone
from .embedded_edit import EmbeddedEditBackbone
from .flux_kontext import FluxKontext
from .folders import TRANSFORMER, open_folder
from .longcat_image_edit import LongCatImageEdit
from .qwen_image_edit import QwenImageEdit

_BACKBONES: dict[str, type[EditBackbone]] = {
    backbone.kind: backbone
    for backbone in (FluxKontext, QwenImageEdit, LongCatImageEdit, EmbeddedEditBackbone)
}


def kinds() -> tuple[str, ...]:
    """The names of all backbones."""
    return tuple(_BACKBONES)


def backbone_class(kind: str) -> type[EditBackbone]:
    """The class of a kind; HywuError for one that does not exist."""
    if kind not in _BACKBONES:
        raise HywuError(f"There is no backbone '{kind}'; there are {', '.join(kinds())}.")
    return _BACKBONES[kind]


def detect(model: str | Path, allow_download: bool = False) -> type[EditBackbone]:
    """The class for a folder, a hub id or a file of the embedded backbone; HywuError for anything else."""
    if Path(model).is_file():
        return EmbeddedEditBackbone
    folder = open_folder(model, (), allow_download)
    name = folder.pipeline
    for backbone in _BACKBONES.values():
        if name in backbone.pipelines:
            return backbone
    if name is None:
        name = folder.class_of(TRANSFORMER)
        for backbone in _BACKBONES.values():
            if name == backbone.transformer_class:
                return backbone
    known = ", ".join(pipeline for backbone in _BACKBONES.values() for pipeline in backbone.pipelines)
    raise HywuError(f"{model} holds a {name}, which no backbone is for; there are backbones for {known}.")
