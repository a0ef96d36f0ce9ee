import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hywu_core.apply import attach
from hywu_core.errors import HywuError
from hywu_core.lora import Adapter, LoraSpec


class Block(nn.Module):
    """A modulation vector (2-D input) and a sequence (3-D input), as in a diffusion transformer's block."""

    def __init__(self, width):
        super().__init__()
        self.modulation = nn.Linear(width, width)
        self.to_q = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(2 * width, width), nn.Identity()])

    def forward(self, x, vector):
        hidden = torch.tanh(self.to_q(x + self.modulation(vector)[:, None]))
        return x + self.to_out[0](input=hidden)


class Backbone(nn.Module):
    def __init__(self, width=6, layers=2):
        super().__init__()
        self.blocks = nn.ModuleList([Block(width) for _ in range(layers)])

    def forward(self, x, vector):
        for block in self.blocks:
            x = block(x, vector)
        return x


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Backbone().requires_grad_(False)


def adapter_for(model, batch=1, rank=2, scale=0.5, requires_grad=False):
    spec = LoraSpec.from_module(model, rank=rank)
    return Adapter(
        {
            t.name: (
                torch.randn(batch, rank, t.d_in).requires_grad_(requires_grad),
                torch.randn(batch, t.d_out, rank).requires_grad_(requires_grad),
            )
            for t in spec.targets
        },
        scale,
    )


def inputs(rows=1):
    return torch.randn(rows, 5, 6), torch.randn(rows, 6)


def merged(model, adapter, index=0, strength=1.0):
    """The same update written into the weights of a copy."""
    model = copy.deepcopy(model)
    for name, (A, B) in adapter.items():
        model.get_submodule(name).weight.data += strength * adapter.scale * B[index] @ A[index]
    return model


def snapshot(model):
    """All there is to restore: instance dictionaries, hooks, class, and weights bit for bit."""
    state = {}
    for name, module in model.named_modules():
        own = {k: v for k, v in module.__dict__.items() if not isinstance(v, dict)}
        hooks = {k: dict(v) for k, v in module.__dict__.items() if isinstance(v, dict) and "hooks" in k}
        state[name] = (type(module), list(module.__dict__), own, hooks)
    weights = {name: (t, t.clone(), t._version) for name, t in model.state_dict(keep_vars=True).items()}
    return state, weights


def assert_restored(model, before):
    state, weights = snapshot(model)
    assert state == before[0]
    assert weights.keys() == before[1].keys()
    for name, (tensor, _, version) in weights.items():
        assert tensor is before[1][name][0]
        assert version == before[1][name][2]
        assert torch.equal(tensor, before[1][name][1])


def test_it_does_what_merging_into_the_weights_does(model):
    adapter, x = adapter_for(model), inputs(3)
    expected = merged(model, adapter, strength=0.8)(*x)
    with attach(model, adapter, strength=0.8):
        torch.testing.assert_close(model(*x), expected)


@settings(deadline=None, max_examples=25)
@given(adapters=st.integers(1, 4), per_adapter=st.integers(1, 3), grad=st.booleans())
def test_batched_rows_equal_single_runs(adapters, per_adapter, grad):
    model = Backbone().requires_grad_(False)
    adapter, x = adapter_for(model, adapters), inputs(adapters * per_adapter)
    with torch.set_grad_enabled(grad):
        with attach(model, adapter):
            together = model(*x)
        for row in range(adapters * per_adapter):
            with attach(model, adapter.select(row // per_adapter)):
                alone = model(*(t[row : row + 1] for t in x))
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_a_batch_that_cannot_be_shared_out_is_refused_and_the_model_survives(model):
    before = snapshot(model)
    with pytest.raises(HywuError, match=r"2 adapters.*3 rows"), attach(model, adapter_for(model, 2)):
        model(*inputs(3))
    assert_restored(model, before)


def test_gradients_reach_a_and_b_of_every_target_and_nothing_else(model):
    adapter, x = adapter_for(model, batch=2, requires_grad=True), inputs(4)
    with attach(model, adapter):
        model(*x).square().sum().backward()
    for A, B in adapter.values():
        assert A.grad.abs().sum() > 0
        assert B.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_equal_those_of_merged_weights(model):
    x = tuple(each.double() for each in inputs(2))
    random = adapter_for(model.double())
    adapter = Adapter(
        {n: tuple(each.double().requires_grad_() for each in pair) for n, pair in random.items()},
        random.scale,
    )
    with attach(model, adapter):
        model(*x).square().sum().backward()
    weights = {
        f"{n}.weight": model.get_submodule(n).weight + adapter.scale * B[0] @ A[0]
        for n, (A, B) in adapter.items()
    }
    loss = torch.func.functional_call(model, weights, x).square().sum()
    B0 = next(iter(adapter.values()))[1]
    torch.testing.assert_close(torch.autograd.grad(loss, B0)[0], B0.grad)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("grad", [False, True])
def test_a_zero_b_leaves_the_output_bit_identical(model, batch, grad):
    adapter = adapter_for(model, batch, requires_grad=grad)
    adapter = Adapter({n: (A, torch.zeros_like(B)) for n, (A, B) in adapter.items()}, adapter.scale)
    x = inputs(4)
    expected = model(*x)
    with torch.set_grad_enabled(grad), attach(model, adapter):
        assert torch.equal(model(*x), expected)


def test_removal_restores_the_module_exactly(model):
    before, x = snapshot(model), inputs()
    expected = model(*x)
    handle = attach(model, adapter_for(model))
    assert not torch.equal(model(*x), expected)
    assert handle.attached
    handle.remove()
    handle.remove()
    assert not handle.attached
    assert_restored(model, before)
    assert torch.equal(model(*x), expected)


def test_an_exception_inside_restores_it_too(model):
    before = snapshot(model)
    with pytest.raises(RuntimeError), attach(model, adapter_for(model)):
        model(torch.zeros(1, 5, 99), torch.zeros(1, 6))
    assert_restored(model, before)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_attachments_add_up_and_come_off_in_any_order(model, order):
    before, x = snapshot(model), inputs(2)
    adapters = [adapter_for(model, batch, scale=0.1) for batch in (1, 2, 1)]
    handles = [attach(model, adapter) for adapter in adapters]
    left = {0, 1, 2}
    for number in (*order, None):
        expected = []
        for row in range(2):
            reference = model_without(model)
            for i in left:
                reference = merged(reference, adapters[i], index=min(row, adapters[i].batch - 1))
            expected.append(reference(*(t[row : row + 1] for t in x)))
        torch.testing.assert_close(model(*x), torch.cat(expected), rtol=1e-4, atol=1e-5)
        if number is not None:
            handles[number].remove()
            left.discard(number)
    assert_restored(model, before)


def model_without(model):
    """A clean copy of a model that may have attachments."""
    clean = Backbone().requires_grad_(False)
    clean.load_state_dict(model.state_dict())
    return clean


def test_attachments_of_different_targets_overlap(model):
    adapter = adapter_for(model)
    name = next(iter(adapter))
    few = Adapter({name: adapter[name]}, adapter.scale)
    before = snapshot(model)
    with attach(model, adapter), attach(model, few):
        pass
    assert_restored(model, before)


def test_a_forward_that_somebody_else_overrode_before_comes_back(model):
    linear = model.blocks[0].to_q
    forward = linear.forward
    linear.forward = lambda x: forward(x) * 2
    before, x = snapshot(model), inputs()
    expected = model(*x)
    with attach(model, adapter_for(model)):
        assert not torch.equal(model(*x), expected)
    assert_restored(model, before)
    assert torch.equal(model(*x), expected)


def test_a_forward_that_somebody_else_overrides_later_stays(model):
    linear, x = model.blocks[0].to_q, inputs()
    expected = model(*x)
    handle = attach(model, adapter_for(model))
    ours = linear.forward
    linear.forward = lambda x: ours(x)
    handle.remove()
    assert linear.__dict__["forward"] is not ours
    assert torch.equal(model(*x), expected)  # ours is still below theirs, without effect


def test_strength_can_change_in_place_and_zero_is_nothing(model):
    adapter, x = adapter_for(model), inputs()
    plain = model(*x)
    with attach(model, adapter) as handle:
        handle.strength = 0.3
        torch.testing.assert_close(model(*x), merged(model_without(model), adapter, strength=0.3)(*x))
        assert handle.strength == 0.3
        handle.strength = 0
        assert torch.equal(model(*x), plain)


def test_swap_copies_into_the_same_memory_and_leaves_both_adapters_alone(model):
    first, second, x = adapter_for(model), adapter_for(model, scale=2.0), inputs()
    kept = [adapter.clone() for adapter in (first, second)]
    with attach(model, first) as handle:
        addresses = [p.A.data_ptr() for p in handle._paths.values()]
        handle.swap(second)
        assert [p.A.data_ptr() for p in handle._paths.values()] == addresses
        torch.testing.assert_close(model(*x), merged(model_without(model), second)(*x))
        handle.swap(first)
        torch.testing.assert_close(model(*x), merged(model_without(model), first)(*x))
    for adapter, copy_ in zip((first, second), kept, strict=True):
        assert all(torch.equal(adapter[n][i], copy_[n][i]) for n in adapter for i in (0, 1))


def test_swap_keeps_strength_and_takes_another_batch_and_rank(model):
    x = inputs(2)
    with attach(model, adapter_for(model), strength=0.5) as handle:
        other = adapter_for(model, batch=2, rank=3)
        handle.swap(other)
        expected = merged(model_without(model), other, index=1, strength=0.5)(*(t[1:] for t in x))
        torch.testing.assert_close(model(*x)[1:], expected)


def test_swap_to_a_trained_adapter_and_back(model):
    x = inputs()
    with attach(model, adapter_for(model)) as handle:
        for _ in range(2):
            trained = adapter_for(model, requires_grad=True)
            handle.swap(trained)
            model(*x).sum().backward()
            assert all(B.grad.abs().sum() > 0 for _, B in trained.values())
        values = trained.detach().clone()
        handle.swap(adapter_for(model))  # must not be written into the trained tensors
        assert all(torch.equal(trained[n][0], values[n][0]) for n in trained)
        assert not model(*x).requires_grad


def test_an_adapter_made_in_inference_mode_can_be_swapped_outside_of_it(model):
    with torch.inference_mode():
        handle = attach(model, adapter_for(model))
    handle.swap(adapter_for(model))
    with torch.inference_mode():
        handle.swap(adapter_for(model))
        model(*inputs())
    handle.remove()


def test_swap_refuses_other_targets_and_dead_attachments(model):
    adapter = adapter_for(model)
    name, pair = next(iter(adapter.items()))
    handle = attach(model, adapter)
    with pytest.raises(HywuError, match="1 targets, the attached one 6"):
        handle.swap(Adapter({name: pair}))
    handle.remove()
    with pytest.raises(HywuError, match="was removed"):
        handle.swap(adapter)


def test_another_backbone_is_refused_before_anything_is_touched(model):
    before = snapshot(model)
    with pytest.raises(HywuError, match=r"no module for 3 of the adapter's 9.*blocks\.2\."):
        attach(model, adapter_for(Backbone(layers=3)))
    with pytest.raises(HywuError, match=r"6 -> 6 in the model, but 4 -> 4"):
        attach(model, adapter_for(Backbone(width=4)))
    pair = torch.zeros(1, 2, 6), torch.zeros(1, 6, 2)
    with pytest.raises(HywuError, match=r"'blocks\.0' is a Block"):
        attach(model, Adapter({"blocks.0": pair}))
    grouped = torch.zeros(1, 3, 2, 6), torch.zeros(1, 3, 6, 2)
    with pytest.raises(HywuError, match="expert axis of 3"):
        attach(model, Adapter({"blocks.0.modulation": grouped}))
    assert_restored(model, before)


def test_it_works_where_the_model_computes_in_another_dtype(model):
    adapter, x = adapter_for(model), [t.bfloat16() for t in inputs(2)]
    half = copy.deepcopy(model).bfloat16()
    with attach(half, adapter):
        assert half(*x).dtype == torch.bfloat16
    with attach(model, adapter), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(*inputs(2))).all()


class Quantised(nn.Module):
    """A linear-like with an int8 weight: only its two feature counts say so."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.abs().max() / 127
        self.register_buffer("weight", (linear.weight / self.scale).round().to(torch.int8))

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) * self.scale).T


def test_quantised_weights_are_neither_read_nor_written(model):
    model.blocks[0].to_q = Quantised(model.blocks[0].to_q)
    adapter, x, before = adapter_for(model), inputs(), snapshot(model)
    with attach(model, adapter):
        output = model(*x)
    assert_restored(model, before)
    reference = merged(
        model, Adapter({n: p for n, p in adapter.items() if n != "blocks.0.to_q"}, adapter.scale)
    )
    A, B = adapter["blocks.0.to_q"]
    inner = reference.blocks[0].to_q.forward
    reference.blocks[0].to_q.forward = lambda x: inner(x) + adapter.scale * x @ A[0].T @ B[0].T
    torch.testing.assert_close(output, reference(*x))


def test_swapping_does_not_recompile(model):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter, x = CompileCounter(), inputs()
    compiled = torch.compile(model, backend=counter)
    adapters = [adapter_for(model) for _ in range(3)]
    with torch.no_grad(), attach(model, adapters[0]) as handle:
        for adapter in adapters:
            handle.swap(adapter)
            torch.testing.assert_close(compiled(*x), merged(model_without(model), adapter)(*x))
        assert counter.frame_count == 1
    torch._dynamo.reset()
