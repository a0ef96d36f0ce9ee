"""Random generators that learned with other encoders than the embedded one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hywu_core import GeneratorConfig, LoraSpec, ParameterGenerator
from hywu_core.generator import save_generator

from . import tiny


def write_siglip2_generator(path: Path, world: Any, id: str) -> None:
    """A generator that reads a SigLIP2 of 16 channels."""
    _write(path, world, {"kind": "siglip2", "id": id, "dim": 16})


def write_hidden_generator(path: Path, world: Any, dim: int) -> None:
    """A generator that reads hidden states of `dim` channels."""
    _write(path, world, {"kind": "backbone_hidden", "id": "a large backbone", "dim": dim})


def _write(path: Path, world: Any, encoder: dict[str, Any]) -> None:
    torch.manual_seed(5)
    spec = LoraSpec.from_module(world.backbone.transformer, rank=tiny.RANK, alpha=tiny.RANK)
    config = GeneratorConfig(condition_dim=encoder["dim"], d_model=64, n_layers=1, n_heads=2)
    generator = ParameterGenerator(config, spec)
    torch.nn.init.normal_(generator.proj_out_B.weight, std=0.5)
    backbone = {"kind": "embedded", "id": tiny.BACKBONE_ID}
    save_generator(path, generator, encoder=encoder, backbone=backbone)
