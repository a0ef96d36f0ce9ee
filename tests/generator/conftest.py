"""A generator small enough for every test, with all that can differ: bands, dims, an expert axis."""

from pathlib import Path

import pytest
import torch

from hywu_core.conditions import Condition
from hywu_core.generator import GeneratorConfig, ParameterGenerator
from hywu_core.lora import Band, LoraSpec, ModuleShape

from .releases import Golden

DIM = 12


@pytest.fixture
def spec() -> LoraSpec:
    double = Band("double", 2, (ModuleShape("to_q", 16, 16), ModuleShape("ff", 16, 40)))
    single = Band("single", 3, (ModuleShape("out", 24, 16), ModuleShape("w1", 16, 8, experts=2)))
    return LoraSpec((double, single), rank=4, alpha=8)


@pytest.fixture
def config() -> GeneratorConfig:
    return GeneratorConfig(condition_dim=DIM, d_model=16, n_layers=2, n_heads=2, accumulation=2)


@pytest.fixture
def fresh(config, spec) -> ParameterGenerator:
    torch.manual_seed(0)
    return ParameterGenerator(config, spec)


@pytest.fixture
def trained(fresh) -> ParameterGenerator:
    """Fresh but for the projection of B, which training would have moved."""
    torch.nn.init.normal_(fresh.proj_out_B.weight)
    torch.nn.init.normal_(fresh.proj_out_B.bias)
    return fresh


@pytest.fixture
def condition() -> Condition:
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1]], dtype=torch.bool)
    return Condition(torch.randn(3, 5, DIM, generator=generator), mask)


@pytest.fixture
def release(tmp_path) -> Path:
    return Golden("experts").write(tmp_path / "release", n_shards=2)
