"""Side paths in a module's forward: stacked, restored, and in compiled graphs that are not compiled again."""

from __future__ import annotations

import gc
from weakref import ref

import pytest
import torch
from torch import nn

from hywu_core.apply.fused import Update
from hywu_core.apply.packed import PackedAdapter, Part
from hywu_core.apply.slots import side_paths

CPU = torch.device("cpu")


def updates(module: nn.Linear, seed: int) -> list[Update]:
    random = torch.Generator().manual_seed(seed)
    A = torch.randn(1, 2, module.in_features, generator=random)
    B = torch.randn(1, module.out_features, 2, generator=random)
    return [Update(*PackedAdapter({"it": [Part(A, B)]}, torch.float32).layers(CPU)["it"], None)]


def delta(update: list[Update]) -> torch.Tensor:
    return (update[0].A @ update[0].ups[0].B).T


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)


def test_blocks_stack_on_the_same_module_and_leave_nothing(model):
    x = torch.randn(3, 4)
    before, one, two = model(x), updates(model[0], 1), updates(model[0], 2)
    with side_paths([(model[0], one, None)], 3), side_paths([(model[0], two, None)], 3):
        together = model(x)
    expected = nn.functional.linear(x, model[0].weight + delta(one) + delta(two), model[0].bias)
    torch.testing.assert_close(together, model[1](expected))
    assert torch.equal(model(x), before)
    assert "forward" not in vars(model[0])


def test_the_same_module_may_be_named_twice_in_one_block(model):
    x, one, two = torch.randn(3, 4), updates(model[0], 1), updates(model[0], 2)
    with side_paths([(model[0], one, None), (model[0], two, None)], 3):
        both = model[0](x)
    torch.testing.assert_close(both, model[0](x) + x @ (delta(one) + delta(two)).T)
    assert "forward" not in vars(model[0])


def test_another_tools_forward_is_put_back_after_an_exception(model):
    other = model[0].forward
    model[0].forward = other
    x, one = torch.randn(3, 4), updates(model[0], 1)
    expected = model[0](x) + x @ delta(one).T
    with side_paths([(model[0], one, None)], 3), side_paths([(model[0], one, None)], 3):
        torch.testing.assert_close(model[0](x), expected + x @ delta(one).T)
    assert vars(model[0])["forward"] is other

    def broken():
        yield model[0], updates(model[0], 1), None
        raise InterruptedError

    with pytest.raises(InterruptedError), side_paths(broken(), 3):
        pass
    assert vars(model[0])["forward"] is other


def test_the_module_has_no_new_attribute_and_the_adapter_is_not_kept(model):
    before, one = vars(model[0]).keys(), updates(model[0], 1)
    watched = ref(one[0].A)
    with side_paths([(model[0], one, None)], 3):
        model(torch.randn(3, 4))
    del one
    gc.collect()
    assert watched() is None
    assert vars(model[0]).keys() == before


def test_another_adapter_compiles_nothing_and_a_stack_once(model):
    torch._dynamo.reset()
    compiled, x = torch.compile(model, backend="eager"), torch.randn(3, 4)
    seen = torch._dynamo.utils.counters["stats"]

    def graphs(*seeds: int) -> int:
        stacked = [[(module, updates(module, seed), None) for module in model] for seed in seeds]
        before = seen["unique_graphs"]
        with side_paths([entry for block in stacked for entry in block], 3):
            torch.testing.assert_close(compiled(x), model(x))
        return seen["unique_graphs"] - before

    assert [graphs(1), graphs(2), graphs(3)] == [1, 0, 0]
    assert [graphs(1, 2), graphs(3, 4)] == [1, 0]
    assert [graphs(5), graphs()] == [0, 1]


def test_like_blocks_share_one_graph():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(10))

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
                torch._dynamo.graph_break()
            return x

    torch._dynamo.reset()
    model, x = Blocks().requires_grad_(False), torch.randn(3, 4)
    compiled, seen = torch.compile(model, backend="eager"), torch._dynamo.utils.counters["stats"]
    before = seen["unique_graphs"]
    with side_paths([(block[0], updates(block[0], 1), None) for block in model.blocks], 3):
        torch.testing.assert_close(compiled(x), model(x))
    assert seen["unique_graphs"] - before == 1
