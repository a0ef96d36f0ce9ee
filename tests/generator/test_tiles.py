"""A bound on what is in work at a time changes the memory of a forward pass, and nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hywu_core.conditions import Condition
from hywu_core.generator import GeneratorConfig, ParameterGenerator
from hywu_core.generator.tiles import columns, spans, whole_layers
from hywu_core.lora import Band, LoraSpec, ModuleShape
from hywu_core.measure import peak_extra_bytes
from hywu_core.tokens import TokenLayout

from .test_model import assert_same, weighted_sum

ROUNDING = {"atol": 1e-5, "rtol": 1e-5}  # of numbers of about one


@given(st.integers(1, 300), st.integers(0, 400))
def test_spans_are_few_of_nearly_one_size_and_leave_nothing_out(length, at_once):
    parts = spans(length, at_once)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(length))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= max(1, at_once)
    assert len(parts) <= -(-length // max(1, at_once))


@pytest.mark.parametrize("cut", [columns, whole_layers])
@pytest.mark.parametrize("rows", [None, 1, 7, 20, 41, 10_000])
def test_tiles_cover_every_position_once(cut, rows):
    seen = torch.zeros(3, 4, 5, 1)
    for row in cut(seen.shape, rows):
        for tile in row:
            seen[tile] += 1
            size = seen[tile].numel()
            least = 4 if cut is columns else 5
            assert rows is None or size <= max(rows, least)
    assert bool((seen == 1).all())


@pytest.mark.parametrize("activation_bytes", [3000, 30_000, 10**9])
@pytest.mark.parametrize("keep_start_bytes", [0, 2**28])
def test_any_bound_gives_the_same_adapters(trained, condition, activation_bytes, keep_start_bytes):
    wanted = trained(condition)  # with gradients: all at once
    trained.activation_bytes, trained.keep_start_bytes = activation_bytes, keep_start_bytes
    for one in (condition, condition[[1]], Condition(condition.tokens)):
        with torch.no_grad():
            for _ in range(2):  # the second call finds what the first has kept
                found = trained(one)
                if one is condition:
                    assert_same(found, wanted, **ROUNDING)
        assert_same(found, trained(one), **ROUNDING)


def test_the_release_layout_and_no_gains_too(spec, condition):
    torch.manual_seed(0)
    config = GeneratorConfig(condition.dim, d_model=16, n_layers=2, n_heads=2, output_gain="none")
    generator = ParameterGenerator(config, spec, TokenLayout("flat", 8))
    torch.nn.init.normal_(generator.proj_out_B.weight)
    wanted = generator(condition)
    generator.activation_bytes = 5000
    with torch.inference_mode():
        assert_same(generator(condition), wanted, **ROUNDING)


def test_what_needs_no_gradient_is_computed_in_place_without_being_told(trained, condition):
    """A frozen generator is one that nobody trains; memory is not to depend on remembering no_grad."""
    with torch.no_grad():
        wanted = trained(condition)
    trained.requires_grad_(False)
    assert not next(iter(trained(condition).values()))[0].requires_grad
    assert_same(trained(condition), wanted, **ROUNDING)
    tokens = condition.tokens.clone().requires_grad_()
    weighted_sum(trained(Condition(tokens, condition.mask))).backward()
    assert bool(tokens.grad.any())


@pytest.mark.parametrize("activation_bytes", [5000])
def test_recomputing_tile_by_tile_changes_no_gradient(trained, condition, activation_bytes):
    def gradients():
        trained.zero_grad()
        weighted_sum(trained(condition)).backward()
        return {name: p.grad.clone() for name, p in trained.named_parameters()}

    stored = gradients()
    trained.gradient_checkpointing, trained.activation_bytes = True, activation_bytes
    torch.testing.assert_close(gradients(), stored, atol=1e-4, rtol=1e-4)


def test_the_bound_bounds_the_peak_forward_and_backward():
    spec = LoraSpec((Band("layers", 16, (ModuleShape("m", 256, 256),)),), rank=8)
    torch.manual_seed(0)
    generator = ParameterGenerator(GeneratorConfig(16, d_model=64, n_layers=2), spec, TokenLayout(segment=32))
    condition = Condition(torch.randn(1, 4, 16))
    activation = 16 * 64 * 64 * 4

    def forward() -> None:
        with torch.no_grad():
            generator(condition)

    def train() -> None:
        weighted_sum(generator(condition)).backward()

    generator.keep_start_bytes = 0
    generator.gradient_checkpointing = True
    peaks = {}
    for bound in (None, activation):
        generator.activation_bytes = bound
        peaks[bound] = (peak_extra_bytes(forward), peak_extra_bytes(train))
    assert peaks[activation][0] < 4 * activation < peaks[None][0]
    assert peaks[activation][1] < 0.6 * peaks[None][1]


def test_compiled_parts_give_the_same_adapters(trained, condition):
    trained.activation_bytes = 12_000
    with torch.no_grad():
        wanted = trained(condition)
        compiled = trained.compile_blocks(backend="eager", fullgraph=True)(condition)
    assert_same(compiled, wanted, **ROUNDING)
    weighted_sum(trained(condition)).backward()
    assert all(p.grad is not None for p in trained.parameters())
