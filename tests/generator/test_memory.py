"""The memory that is planned is the memory that is taken."""

import pytest
import torch

from hywu_core.conditions import Condition
from hywu_core.generator import GeneratorConfig, ParameterGenerator
from hywu_core.generator.memory import MemoryPlan, memory_plan, plan_of
from hywu_core.generator.quantize import quantize_generator
from hywu_core.lora import Band, LoraSpec, ModuleShape
from hywu_core.measure import peak_extra_bytes
from hywu_core.tokens import TokenLayout

from ..released import RELEASED_BAND

BANDS = (
    Band("double", 6, (ModuleShape("to_q", 512, 512), ModuleShape("ff", 512, 1024))),
    Band("single", 9, (ModuleShape("out", 768, 512), ModuleShape("w1", 512, 256, experts=3))),
)


def build(kind: str = "rank_anchored", gain: str = "fixed") -> ParameterGenerator:
    torch.manual_seed(0)
    config = GeneratorConfig(64, d_model=128, n_layers=2, n_heads=4, accumulation=2, output_gain=gain)
    return ParameterGenerator(config, LoraSpec(BANDS, rank=8), TokenLayout(kind, 64))


def planned(generator: ParameterGenerator, condition: Condition) -> MemoryPlan:
    return plan_of(generator, condition.tokens.shape[1], condition.batch)


def measured(generator: ParameterGenerator, condition: Condition) -> int:
    def run() -> None:
        with torch.no_grad():
            generator(condition)

    return peak_extra_bytes(run)


@pytest.mark.parametrize("keep", [0, 2**28])
@pytest.mark.parametrize("bound", [None, 200_000, 10_000_000])
@pytest.mark.parametrize(
    ("kind", "batch", "dtype"),
    [("rank_anchored", 1, torch.float32), ("rank_anchored", 3, torch.float32), ("flat", 2, torch.bfloat16)],
)
def test_the_peak_is_the_planned_one(kind, batch, dtype, bound, keep):
    generator = build(kind).to(dtype)
    generator.activation_bytes, generator.keep_start_bytes = bound, keep
    condition = Condition(torch.randn(batch, 20, 64).to(dtype))
    plan, peak = planned(generator, condition), measured(generator, condition)
    assert 0.85 < plan.extra / peak < 1.35
    assert plan.kept == generator._starts.n_bytes


@pytest.mark.parametrize("quantized", [None, "int8", "fp8"])
@pytest.mark.parametrize("gain", ["fixed", "none"])
def test_weights_and_outputs_are_counted_exactly(quantized, gain):
    generator = build(gain=gain)
    if quantized:
        generator = quantize_generator(generator, quantized)
    condition = Condition(torch.randn(2, 20, 64))
    plan = planned(generator, condition)
    assert plan.weights == sum(t.numel() * t.element_size() for t in generator.state_dict().values())
    with torch.no_grad():
        adapter = generator(condition)
    assert plan.output == sum(t.numel() * 4 for pair in adapter.values() for t in pair)


def test_the_released_generator_in_one_byte_fits_twelve_gigabytes():
    config = GeneratorConfig(4096, d_model=4096, n_layers=24, n_heads=32, accumulation=4, output_gain="none")
    spec, layout = LoraSpec((RELEASED_BAND,), rank=16, alpha=64), TokenLayout("flat", 1024)
    options = {"n_condition": 1024, "dtype": torch.bfloat16, "device": "cuda"}
    full = memory_plan(config, spec, layout, **options)
    assert full.weights == pytest.approx(16.3e9, rel=0.01)
    assert full.output == full.activation == pytest.approx(1.45e9, rel=0.01)
    quantized = memory_plan(config, spec, layout, quantized="int8", activation_bytes=2**28, **options)
    assert quantized.peak < 11.9e9
