"""What does not depend on the condition is computed once, and again as soon as it would be different."""

import copy

import pytest
import torch

from hywu_core.conditions import Condition
from hywu_core.train.config import TrainConfig
from hywu_core.train.optimizer import update

from .test_model import assert_same, difference


@pytest.fixture
def starts(trained):
    """How often the first block's first half has run, on one of the two bands."""
    calls = []
    trained.blocks[0].token_attention.register_forward_pre_hook(lambda *_: calls.append(1))
    return lambda: len(calls) // len(trained.bands)


def run(generator, condition):
    with torch.no_grad():
        return generator(condition)


def test_once_for_all_conditions(trained, condition, starts):
    first = run(trained, condition)
    assert difference(first, run(trained, Condition(condition.tokens + 1))) > 1e-3
    assert_same(run(trained, condition), first, rtol=0, atol=0)
    with torch.inference_mode():
        trained(condition)
    assert starts() == 1


def test_first_made_in_inference_mode_it_serves_other_modes(trained, condition, starts):
    with torch.inference_mode():
        first = trained(condition)
    assert_same(run(trained, condition), first, rtol=0, atol=0)
    assert starts() == 1


@pytest.mark.parametrize(
    "name", ["bands.0.token_rank", "prior_norm.weight", "blocks.0.layer_attention.qkv.weight"]
)
def test_anew_after_any_of_its_weights_was_written_to(trained, condition, name):
    before = run(trained, condition)
    with torch.no_grad():
        trained.get_parameter(name).add_(0.5)
    after = run(trained, condition)
    assert difference(before, after) > 1e-3
    assert_same(after, copy.deepcopy(trained)(condition), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])  # one kernel for all weights, as on a GPU, counts no writes
def test_anew_after_a_training_step(trained, condition, fused):
    before = run(trained, condition)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.1, fused=fused)
    sum(t.square().sum() for pair in trained(condition).values() for t in pair).backward()
    update(optimizer, TrainConfig(lr=0.1), step=0)
    after = run(trained, condition)
    assert difference(before, after) > 1e-3
    assert_same(after, trained(condition), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("assign", [False, True])
def test_anew_with_loaded_weights(trained, condition, assign):
    wanted = run(trained, condition)
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.5)
    run(trained, condition)
    trained.load_state_dict(state, assign=assign)
    assert_same(run(trained, condition), wanted, rtol=0, atol=0)


def test_other_weights_than_those_of_the_first_block_do_not_matter(trained, condition, starts):
    run(trained, condition)
    with torch.no_grad():
        trained.blocks[1].layer_attention.qkv.weight.add_(0.5)
        trained.proj_out_B.weight.mul_(2)
    run(trained, condition)
    assert starts() == 1


def test_training_keeps_nothing_and_moving_lets_go(trained, condition):
    trained(condition)
    assert trained._starts.n_bytes == 0
    run(trained, condition)
    assert trained._starts.n_bytes == sum(b.n_layers * b.n_places for b in trained.bands) * 16 * 4
    trained.double()
    assert trained._starts.n_bytes == 0


def test_anew_when_the_weights_were_moved_behind_its_back(trained, condition):
    run(trained, condition)
    for module in [*trained.children(), *trained.blocks]:  # not the generator as a whole
        module.double()
    adapter = run(trained, condition)
    assert adapter.dtype == torch.float64
    trained.double()
    assert_same(run(trained, condition), adapter, rtol=0, atol=0)


def test_nothing_larger_than_allowed_is_kept(trained, condition, starts):
    trained.keep_start_bytes = 100
    run(trained, condition)
    run(trained, condition)
    assert (starts(), trained._starts.n_bytes) == (2, 0)


def test_weights_that_count_no_writes_are_not_trusted(trained, condition, starts):
    with torch.inference_mode():
        trained.prior_norm.weight = torch.nn.Parameter(trained.prior_norm.weight.clone(), requires_grad=False)
        trained(condition)
        trained.prior_norm.weight.mul_(2)
        after = trained(condition)
        assert starts() == 2
        assert_same(after, copy.deepcopy(trained)(condition), rtol=1e-5, atol=1e-5)
