import math

import pytest
import torch

from hywu_core.errors import HywuError
from hywu_core.lora import Adapter, Band, LoraSpec, ModuleShape

SPEC = LoraSpec((Band("b", 2, (ModuleShape("m", 6, 5), ModuleShape("e", 4, 3, experts=2))),), rank=2, alpha=4)


def adapter_of(batch=3, scale=2.0, provenance=None):
    def pair(t):
        experts = () if t.experts is None else (t.experts,)
        return torch.randn(batch, *experts, 2, t.d_in), torch.randn(batch, *experts, t.d_out, 2)

    return Adapter({t.name: pair(t) for t in SPEC.targets}, scale, provenance)


def update(adapter, name, index):
    A, B = adapter[name]
    return adapter.scale * B[index] @ A[index]


def test_it_reads_as_a_mapping_with_common_properties():
    adapter = adapter_of()
    assert list(adapter) == ["b.0.m", "b.0.e", "b.1.m", "b.1.e"]
    assert (len(adapter), adapter.batch, adapter.rank, adapter.dtype) == (4, 3, 2, torch.float32)
    assert adapter.n_parameters == SPEC.n_parameters
    assert "b.0.m" in adapter
    assert "batch=3" in repr(adapter)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (1, [1]),
        (-1, [2]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, -2), [2, 0]),
        ([2, 0], [2, 0]),
        ([1], [1]),
    ],
)
def test_select_keeps_the_batch_axis(index, rows):
    adapter = adapter_of()
    chosen = adapter.select(index)
    assert chosen.batch == len(rows)
    for name in adapter:
        for i, row in enumerate(rows):
            assert torch.equal(update(chosen, name, i), update(adapter, name, row))


@pytest.mark.parametrize("index", [3, -4, [0, 3], [], slice(3, 9)])
def test_select_outside_the_batch_is_refused(index):
    with pytest.raises(HywuError, match=r"3|empty"):
        adapter_of().select(index)


def test_stack_joins_batches_and_folds_scales():
    first = adapter_of(2, scale=2.0, provenance={"base": "x", "prompt": "a"})
    second = adapter_of(1, scale=0.5, provenance={"base": "x", "prompt": "b"})
    joined = Adapter.stack([first, second])
    assert joined.batch == 3
    assert joined.provenance == {"base": "x"}
    for name in joined:
        torch.testing.assert_close(update(joined, name, 1), update(first, name, 1))
        torch.testing.assert_close(update(joined, name, 2), update(second, name, 0))


def test_stack_survives_a_zero_scale():
    joined = Adapter.stack([adapter_of(1, scale=0.0), adapter_of(1, scale=2.0)])
    assert torch.equal(update(joined, "b.0.m", 0), torch.zeros(5, 6))
    assert update(joined, "b.0.m", 1).abs().sum() > 0


def test_stack_refuses_other_targets_and_ranks():
    adapter = adapter_of(1)
    fewer = Adapter({"b.0.m": adapter["b.0.m"]}, 1.0)
    with pytest.raises(HywuError, match="3 targets are in only one"):
        Adapter.stack([adapter, fewer])
    A, B = adapter["b.0.m"]
    with pytest.raises(HywuError, match="ranks, 2 and 1"):
        Adapter.stack([fewer, Adapter({"b.0.m": (A[:, :1], B[..., :1])})])
    with pytest.raises(HywuError, match=r"6, 5.*5, 5"):
        Adapter.stack([fewer, Adapter({"b.0.m": (A[..., :5], B)})])
    with pytest.raises(HywuError, match="empty"):
        Adapter.stack([])


def test_adapters_are_compared_by_identity():
    adapter = adapter_of()
    assert adapter == adapter
    assert adapter != adapter.clone()
    assert adapter in {adapter}


def test_scaled_multiplies_the_update_and_shares_the_tensors():
    adapter = adapter_of()
    half = adapter.scaled(0.5)
    torch.testing.assert_close(update(half, "b.1.m", 0), update(adapter, "b.1.m", 0) * 0.5)
    assert half["b.1.m"][0] is adapter["b.1.m"][0]


def test_to_casts_and_detach_cuts_autograd():
    adapter = adapter_of().map(torch.Tensor.requires_grad_)
    assert adapter.requires_grad
    assert adapter.to(dtype=torch.bfloat16).dtype == torch.bfloat16
    assert adapter.to(dtype=torch.float32)["b.0.m"][0] is adapter["b.0.m"][0]
    assert not adapter.detach().requires_grad
    assert adapter.cpu().device.type == "cpu"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["b.0.m", "b.1.e"])
@pytest.mark.parametrize("part", [0, 1])
def test_check_names_the_tensor_that_is_not_finite(name, part, value):
    adapter = adapter_of()
    adapter[name][part].view(-1)[-1] = value
    with pytest.raises(HywuError, match=rf"in {'AB'[part]} of '{name}'"):
        adapter.check()


def test_check_compares_with_a_spec():
    adapter = adapter_of()
    assert adapter.check(SPEC) is adapter
    with pytest.raises(HywuError, match=r"rank 2.*3"):
        adapter.check(LoraSpec(SPEC.bands, rank=3))
    fewer = LoraSpec((Band("b", 1, SPEC.bands[0].modules),), rank=2)
    with pytest.raises(HywuError, match=r"4 targets.*2.*0 are missing and 2 unknown.*b\.1\.e"):
        adapter.check(fewer)
    wider = LoraSpec((Band("b", 2, (ModuleShape("m", 7, 5), SPEC.bands[0].modules[1])),), rank=2)
    with pytest.raises(HywuError, match=r"b\.0\.m.*\(6, 5, None\).*\(7, 5, None\)"):
        adapter.check(wider)
    with pytest.raises(HywuError, match="scale is nan"):
        adapter_of(scale=math.nan).check()


@pytest.mark.parametrize(
    ("A", "B"),
    [((1, 2, 4), (1, 3, 5)), ((2, 2, 4), (1, 3, 2)), ((1, 3, 4), (1, 3, 3)), ((2, 4), (3, 2)),
     ((1, 2, 2, 4), (1, 3, 3, 2)), ((2, 2, 4), (2, 3, 2))],
)  # fmt: skip
def test_shapes_that_contradict_each_other_are_refused_at_once(A, B):
    good = (torch.zeros(1, 2, 4), torch.zeros(1, 3, 2))
    with pytest.raises(HywuError, match="'bad'"):
        Adapter({"good": good, "bad": (torch.zeros(A), torch.zeros(B))})


def test_an_adapter_without_targets_is_refused():
    with pytest.raises(HywuError, match="at least one target"):
        Adapter({})


def test_provenance_cannot_be_changed_behind_its_back():
    source = {"base": "x"}
    adapter = adapter_of(provenance=source)
    source["base"] = "y"
    assert adapter.scaled(2).provenance == {"base": "x"}
    with pytest.raises(TypeError):
        adapter.provenance["base"] = "z"


def test_every_adapter_keeps_its_origin():
    rows = [{"prompt": name} for name in "abc"]
    adapter = Adapter(adapter_of(), 2.0, {"base": "x"}, rows)

    def prompts(some):
        return "".join(row.get("prompt", "-") for row in some.rows)

    assert prompts(adapter) == "abc"
    assert prompts(adapter.select(-1)) == "c"
    assert prompts(adapter.select(slice(1, 3))) == "bc"
    assert prompts(adapter.select([2, 0])) == "ca"
    assert prompts(adapter.to(dtype=torch.bfloat16).clone().scaled(2)) == "abc"
    assert prompts(Adapter.stack([adapter.select(1), adapter])) == "babc"
    assert prompts(Adapter.stack([adapter_of(2), adapter])) == "--abc"
    assert Adapter.stack([adapter_of(1), adapter_of(1)]).rows == ()
    assert adapter_of().select(0).rows == ()
    rows[0]["prompt"] = "z"
    assert prompts(adapter) == "abc"
    with pytest.raises(TypeError):
        adapter.rows[0]["prompt"] = "z"
    with pytest.raises(HywuError, match="2 origins were given for a batch of 3"):
        Adapter(adapter_of(), 1.0, None, rows[:2])
