"""Tiny folders of every model, written once; both halves of every model, loaded once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from hywu_core.backbones.base import EditBackbone, EditEncoders
from hywu_core.backbones.registry import backbone_class

from .tiny_folders import WRITERS


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Kind -> folder; not to be changed by tests."""
    root = tmp_path_factory.mktemp("models")
    return {kind: write(root / f"tiny-{kind}") for kind, write in WRITERS.items()}


@pytest.fixture(scope="session")
def load(folders):
    """Kind -> (encoders, backbone) in float32."""

    @cache
    def both(kind: str) -> tuple[EditEncoders, EditBackbone]:
        backbone, folder = backbone_class(kind), {"model": folders[kind]} if kind in folders else {}
        return (
            backbone.load_encoders(**folder, dtype=torch.float32),
            backbone.load_transformer(**folder, dtype=torch.float32),
        )

    return both
