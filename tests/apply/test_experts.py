"""Grouped experts, in every form: the same as weights merged one adapter after the other."""

import copy

import pytest
import torch
from torch import nn

from hywu_core.apply import attach
from hywu_core.apply.experts import ExpertPath
from hywu_core.apply.stacked import StackedPath
from hywu_core.errors import HywuError
from hywu_core.lora import Adapter

from . import moe
from .test_attach import assert_restored, snapshot


def named(*names):
    return lambda: moe.Separate(names)


FORMS = {
    "list of w1 w2 w3": (moe.PlainList, named("w1", "w2", "w3")),
    "list of gate up down": (moe.PlainList, named("gate_proj", "down_proj", "up_proj")),
    "list of fused gate and up": (moe.PlainList, moe.GateThenUp),
    "list that runs": (moe.ListThatRuns, moe.UpThenGate),
    "tensors": (moe.Tensors, moe.StackedExperts),
    "transposed tensors": (moe.Tensors, moe.OtherLayout),
}


@pytest.fixture(params=FORMS)
def model(request):
    torch.manual_seed(0)
    return moe.Model(*FORMS[request.param]).requires_grad_(False)


def hidden(rows, tokens=7):
    return torch.randn(rows, tokens, moe.D)


def exact(model, adapter, x, strength=1.0):
    """Each row with its own adapter, from merged weights."""
    share = len(x) // adapter.batch
    rows = [moe.merged(model, adapter, row // share, strength)(x[row : row + 1]) for row in range(len(x))]
    return torch.cat(rows)


@pytest.mark.parametrize(("adapters", "rows"), [(1, 1), (1, 3), (2, 2), (2, 4), (3, 3)])
@pytest.mark.parametrize("grad", [False, True])
def test_every_row_gets_its_own_adapters_experts(model, adapters, rows, grad):
    adapter, x = moe.adapter_for(model, adapters), hidden(rows)
    plain = model(x)
    with torch.set_grad_enabled(grad), attach(model, adapter, strength=0.8):
        y = model(x)
    torch.testing.assert_close(y, exact(model, adapter, x, 0.8), rtol=1e-4, atol=1e-5)
    assert float((y - plain).abs().max()) > 0.05


def test_experts_alone_and_one_of_the_three_alone(model):
    adapter, x = moe.adapter_for(model, 2, shared=False), hidden(2)
    for part in ([n for n in adapter if n.endswith(role)] for role in ("", "w1", "w2", "w3")):
        some = Adapter({name: adapter[name] for name in part}, adapter.scale)
        with attach(model, some):
            torch.testing.assert_close(model(x), exact(model, some, x), rtol=1e-4, atol=1e-5)


def test_no_token_reaches_some_experts_and_there_may_be_none_at_all(model):
    chosen = torch.cat([layer.mlp.gate(hidden(2))[1].flatten() for layer in model.layers])
    assert 0 not in chosen
    with attach(model, moe.adapter_for(model, 2)):
        assert model(hidden(2, tokens=0)).shape == (2, 0, moe.D)
        x = hidden(2, tokens=1)
        torch.testing.assert_close(model(x).shape, x.shape)


def test_gradients_are_those_of_the_dense_formula(model):
    """d/dA and d/dB by autograd through merged weights, one adapter at a time."""
    adapter, x = moe.adapter_for(model, 2, requires_grad=True), hidden(2)
    with attach(model, adapter):
        for _ in range(2):  # gradients add up over calls, as in any module
            (model(x) * torch.arange(moe.D)).sum().backward()
    for index in range(2):
        twin = copy.deepcopy(model)
        leaves = {}
        for name, (A, B) in adapter.items():
            leaves[name] = tuple(t[index].detach().clone().requires_grad_() for t in (A, B))
        functional_merge(twin, leaves, adapter.scale)
        (2 * twin(x[index : index + 1]) * torch.arange(moe.D)).sum().backward()
        for name, pair in leaves.items():
            for ours, theirs in zip(adapter[name], pair, strict=True):
                wanted = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
                torch.testing.assert_close(ours.grad[index], wanted, rtol=1e-3, atol=1e-4)


def functional_merge(model, leaves, scale):
    """Weights that are differentiable functions of the leaves, in place of the parameters."""
    dense = {}
    for name, (A, B) in leaves.items():
        group, _, role = name.rpartition(".")
        dense.setdefault(group if role != "shared" else name, {})[role] = scale * B @ A
    for name, updates in dense.items():
        module = model.get_submodule(name)
        if "shared" in updates:
            replace(module, "weight", module.weight + updates["shared"])
            continue
        if isinstance(module, moe.StackedExperts):
            halves = torch.stack([updates["w1"], updates["w3"]], dim=2 if module.interleaved else 1)
            up, down = halves.flatten(1, 2), updates["w2"]
            if module.transposed:
                up, down = up.mT, down.mT
            if module.interleaved:
                up = torch.stack([updates["w1"], updates["w3"]], dim=2).flatten(1, 2).mT
            replace(module, "gate_up_proj", module.gate_up_proj + up)
            replace(module, "down_proj", module.down_proj + down)
            continue
        for e, expert in enumerate(module):
            if isinstance(expert, moe.Separate):
                for linear, role in zip(expert.names, moe.DIMS, strict=True):
                    replace(
                        getattr(expert, linear), "weight", getattr(expert, linear).weight + updates[role][e]
                    )
                continue
            order = ("w1", "w3") if isinstance(expert, moe.GateThenUp) else ("w3", "w1")
            fused = getattr(expert, "gate_up_proj" if order[0] == "w1" else "gate_and_up_proj")
            replace(fused, "weight", fused.weight + torch.cat([updates[role][e] for role in order]))
            replace(expert.down_proj, "weight", expert.down_proj.weight + updates["w2"][e])


def replace(module, name, tensor):
    del module._parameters[name]
    setattr(module, name, tensor)


def test_only_routed_rows_are_multiplied(model, monkeypatch):
    """As many rows for each update as the router chose, and never all tokens for all experts."""
    rows = []

    def spied(method):
        return lambda self, y, x, *args: (rows.append(len(x)), method(self, y, x, *args))[1]

    monkeypatch.setattr(ExpertPath, "__call__", spied(ExpertPath.__call__))
    monkeypatch.setattr(StackedPath, "add", spied(StackedPath.add))
    with attach(model, moe.adapter_for(model, shared=False)):
        model(hidden(1, tokens=40))
    assert sum(rows) == 2 * 3 * 40 * moe.K


def test_it_stacks_and_comes_off_without_a_trace(model):
    before, x = snapshot(model), hidden(6)
    first, second = moe.adapter_for(model, 2), moe.adapter_for(model, 3, rank=1)
    expected = torch.cat(
        [
            moe.merged(moe.merged(model, first, row // 3), second, row // 2)(x[row : row + 1])
            for row in range(6)
        ]
    )
    a = attach(model, first)
    b = attach(model, second)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    a.remove()
    torch.testing.assert_close(model(x), exact(model, second, x), rtol=1e-4, atol=1e-5)
    b.remove()
    assert_restored(model, before)


def test_swap_takes_another_batch_and_strength_zero_is_nothing(model):
    x = hidden(4)
    plain = model(x)
    one, two = moe.adapter_for(model, 1), moe.adapter_for(model, 2, rank=3)
    with attach(model, one) as handle:
        handle.swap(two)
        torch.testing.assert_close(model(x), exact(model, two, x), rtol=1e-4, atol=1e-5)
        handle.swap(one)
        handle.strength = 0.5
        torch.testing.assert_close(model(x), exact(model, one, x, 0.5), rtol=1e-4, atol=1e-5)
        handle.strength = 0
        assert torch.equal(model(x), plain)
    assert torch.equal(model(x), plain)


def test_nothing_is_left_after_an_exception_inside(model):
    before = snapshot(model)
    handle = attach(model, moe.adapter_for(model, 2))
    with pytest.raises(HywuError, match="2 adapters cannot be shared out over a batch of 3 rows"):
        model(hidden(3, tokens=4))  # 12 tokens could be halved, the batch cannot
    assert all(path.turn is None and path.batch is None for path in handle._paths.values())
    handle.remove()
    assert_restored(model, before)


def test_bfloat16(model):
    adapter, x = moe.adapter_for(model, 2), hidden(2)
    half = copy.deepcopy(model).bfloat16()
    with attach(half, adapter):
        y = half(x.bfloat16())
    assert y.dtype == torch.bfloat16
    # Routing is the same where it matters: the largest difference is that of a few roundings.
    wanted = exact(model, adapter, x)
    assert float((y.float() - wanted).norm() / wanted.norm()) < 0.1


def test_other_experts_are_refused_before_anything_is_touched(model):
    before, adapter = snapshot(model), moe.adapter_for(model, shared=False)
    name = "layers.0.mlp.experts.w1"

    def changed(name, A, B):
        return Adapter({name: (A, B)}, 1.0)

    A, B = adapter[name]
    for wrong, complaint in (
        (changed(name, A[:, :3], B[:, :3]), "5 experts in the model, but 3 in the adapter"),
        (changed(name, A[..., :4], B), r"8 -> 6 in the model, but 4 -> 6 in the adapter"),
        (changed("layers.0.mlp.experts.w9", A, B), "w9'"),
        (changed("layers.0.mlp.w1", A, B), "neither a list of experts nor one of transformers"),
        (changed("layers.7.mlp.experts.w1", A, B), "no module for 1 of the adapter's 1"),
        (changed("layers.0.mlp.shared", A, B), "expert axis of 5 in the adapter, but is one linear"),
    ):
        with pytest.raises(HywuError, match=complaint):
            attach(model, wrong)
    with attach(model, adapter) as handle, pytest.raises(HywuError, match="but 3 in the adapter"):
        handle.swap(Adapter({n: (A[:, :3], B[:, :3]) for n, (A, B) in adapter.items()}))
    assert_restored(model, before)


def test_an_expert_called_by_itself_cannot_tell_rows_apart():
    model = moe.Model(moe.PlainList, named("w1", "w2", "w3"))
    expert = model.layers[0].mlp.experts[1]
    with attach(model, moe.adapter_for(model, 2)), pytest.raises(HywuError, match="Attach one adapter"):
        expert(torch.randn(4, moe.D))


class Quantised(moe.StackedExperts):
    def __init__(self):
        super().__init__()
        for name in ("gate_up_proj", "down_proj"):
            codes = getattr(self, name).detach().to(torch.float8_e4m3fn)
            setattr(self, name, nn.Parameter(codes, requires_grad=False))


class CalledOtherwise(moe.StackedExperts):
    def forward(self, tokens):
        return tokens


@pytest.mark.parametrize("make", [Quantised, CalledOtherwise])
def test_stacked_experts_of_another_kind_say_what_is_possible(make):
    model = moe.Model(moe.Tensors, make)
    with pytest.raises(
        HywuError, match=rf"{make.__name__} holds its experts as torch\.\w+ and is called with"
    ):
        attach(model, moe.adapter_for(model))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_transformers_own_mixtures(family, implementation):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    if family == "mixtral":
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock as Block

        config = transformers.MixtralConfig(
            hidden_size=16, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2
        )
    else:
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock as Block

        config = transformers.Qwen3MoeConfig(
            hidden_size=16, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2
        )
    config._experts_implementation = implementation
    torch.manual_seed(0)
    block = Block(config).eval().requires_grad_(False)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(4, 6, 16)
    shapes = {"w1": (16, 24), "w3": (16, 24), "w2": (24, 16)}
    adapter = Adapter(
        {
            f"experts.{role}": (torch.randn(2, 4, 2, d_in) / 3, torch.randn(2, 4, d_out, 2) / 3)
            for role, (d_in, d_out) in shapes.items()
        },
        0.7,
    )
    before = snapshot(block)
    with torch.no_grad(), attach(block, adapter):
        y = block(x)
    assert_restored(block, before)
    for row in range(4):
        twin = copy.deepcopy(block)
        for role, (A, B) in adapter.items():
            update = adapter.scale * B[row // 2] @ A[row // 2]
            gate, up = twin.experts.gate_up_proj.chunk(2, dim=1)
            {"w1": gate, "w3": up, "w2": twin.experts.down_proj}[role[-2:]].add_(update)
        torch.testing.assert_close(y[row], twin(x[row : row + 1])[0], rtol=1e-4, atol=1e-4)
