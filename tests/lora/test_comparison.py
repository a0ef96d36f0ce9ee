from __future__ import annotations

import pytest
import torch

from hywu_core import Adapter
from hywu_core.errors import HywuError
from hywu_core.lora.comparison import compare
from hywu_core.lora.norm_table import place

from ..mps import PretendMps


def adapter_of(names: list[str], rank: int = 2, batch: int = 2, experts: int | None = None) -> Adapter:
    random = torch.Generator().manual_seed(rank)
    axes = (batch,) if experts is None else (batch, experts)
    return Adapter(
        {
            name: (
                torch.randn(*axes, rank, 6, generator=random),
                torch.randn(*axes, 5, rank, generator=random),
            )
            for name in names
        },
        0.25 * rank,
    )


def updates(adapter: Adapter, index: int) -> dict[str, torch.Tensor]:
    return {name: adapter.scale * B[index].double() @ A[index].double() for name, (A, B) in adapter.items()}


@pytest.mark.parametrize("experts", [None, 3])
def test_the_difference_is_that_of_the_matrices(experts):
    names = ["blocks.0.a", "blocks.1.a"]
    first, second = adapter_of(names, 2, experts=experts), adapter_of(names, 3, experts=experts)
    found = compare(first, second, 1, 0)
    u, v = updates(first, 1), updates(second, 0)
    for name in names:
        band, layer, module = place(name)
        table = next(b for b in found.difference.bands if b.name == band)
        norm = table.norms[table.layers.index(layer)][table.modules.index(module)]
        assert norm == pytest.approx(float((v[name] - u[name]).norm()), rel=1e-9)
    flat_u, flat_v = (torch.cat([m.flatten() for m in x.values()]) for x in (u, v))
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(flat_u, flat_v, dim=0)), abs=1e-9)


def test_an_adapter_and_its_copy_do_not_differ_at_all():
    adapter = adapter_of(["blocks.0.a", "blocks.1.a"])
    found = compare(adapter, adapter.clone())
    assert found.difference.total == 0
    assert found.cosine == pytest.approx(1)


def test_adapters_on_apples_gpu_are_compared_in_doubles_on_the_cpu():
    first, second = adapter_of(["blocks.0.a"]), adapter_of(["blocks.0.a"], 3)
    with PretendMps():
        found = compare(first, second)
    assert found == compare(first, second)


def test_the_same_update_in_other_factors_does_not_differ():
    adapter = adapter_of(["blocks.0.a"])
    mix = torch.tensor([[2.0, 1.0], [0.0, 0.5]])
    other = Adapter({n: (torch.linalg.inv(mix) @ A, B @ mix) for n, (A, B) in adapter.items()}, adapter.scale)
    assert compare(adapter, other).difference.total == 0


def test_the_opposite_update():
    adapter = adapter_of(["blocks.0.a"])
    found = compare(adapter, adapter.scaled(-1))
    assert found.cosine == pytest.approx(-1)
    assert found.difference.total == pytest.approx(2 * float(updates(adapter, 0)["blocks.0.a"].norm()))


def test_a_zero_update_has_no_angle():
    adapter = adapter_of(["blocks.0.a"])
    assert compare(adapter, adapter.scaled(0)).cosine is None


def test_a_target_that_one_lacks_counts_as_zero_in_it():
    first, second = adapter_of(["blocks.0.a", "blocks.1.a"]), adapter_of(["blocks.0.a", "blocks.2.a"])
    found = compare(first, second)
    assert (found.shared, found.only_first, found.only_second) == (1, 1, 1)
    assert found.difference.bands[0].layers == (0, 1, 2)
    assert found.difference.bands[0].norms[1][0] == pytest.approx(
        float(updates(first, 0)["blocks.1.a"].norm())
    )


@pytest.mark.parametrize("rank", [4, 8, 10, 12, 20])
def test_an_update_that_cancels_is_nothing(rank):
    """A LoRA less itself, as Combine Adapters makes it: what is left is rounding of either sign."""
    random = torch.Generator().manual_seed(rank)
    A, B = torch.randn(1, rank, 512, generator=random), torch.randn(1, 256, rank, generator=random)
    nothing = Adapter({"blocks.0.a": (torch.cat([A, A], 1), torch.cat([B, -B], 2))}, 1.0)
    other = Adapter({"blocks.0.a": (A, B)}, 1.0)
    found = compare(nothing, other)
    assert found.cosine is None
    torch.testing.assert_close(
        torch.tensor(found.difference.bands[0].norms[0][0]), updates(other, 0)["blocks.0.a"].norm().float()
    )
    assert compare(nothing, nothing).difference.bands[0].norms[0][0] == 0


def test_adapters_of_different_models_are_refused():
    with pytest.raises(HywuError, match="no target in common"):
        compare(adapter_of(["blocks.0.a"]), adapter_of(["layers.0.a"]))
    wide = Adapter({"blocks.0.a": (torch.ones(1, 2, 7), torch.ones(1, 5, 2))})
    with pytest.raises(HywuError, match="7 -> 5"):
        compare(adapter_of(["blocks.0.a"]), wide)
