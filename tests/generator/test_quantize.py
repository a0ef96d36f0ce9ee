"""A generator in one byte a weight: how near it stays, that it really is one byte, where it is refused."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from hywu_core.conditions import Condition
from hywu_core.errors import HywuError
from hywu_core.generator import (
    GeneratorConfig,
    ParameterGenerator,
    load_generator,
    quantize_generator,
    save_generator,
    save_release,
)
from hywu_core.generator import quantize as module
from hywu_core.generator.quantize import KINDS, QuantizedLinear, quantization_of, quantize_rows
from hywu_core.lora import Adapter, Band, LoraSpec, ModuleShape

from .conftest import DIM
from .live_bytes import LiveBytes

BOTH = pytest.mark.parametrize("kind", list(KINDS))


def linear_of(kind, n=24, k=16, bias=True, seed=0):
    torch.manual_seed(seed)
    quantized = QuantizedLinear(k, n, bias, kind)
    codes, scale = quantize_rows(torch.randn(n, k), kind)
    state = {"weight": codes, "weight_scale": scale} | ({"bias": torch.randn(n)} if bias else {})
    quantized.load_state_dict(state)
    return quantized


def named(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {f"{name}.{x}": t for name, pair in adapter.items() for x, t in zip("AB", pair, strict=True)}


def update_error(adapter: Adapter, exact: Adapter) -> float:
    """Relative Frobenius error of the update B A, over all targets and the batch."""
    wrong = norm = 0.0
    for name, (A, B) in exact.items():
        update = B @ A
        wrong += float((adapter[name][1].float() @ adapter[name][0].float() - update).square().sum())
        norm += float(update.square().sum())
    return (wrong / norm) ** 0.5


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 9),
    k=st.integers(1, 40),
    exponent=st.integers(-30, 30),
    kind=st.sampled_from(list(KINDS)),
)
def test_every_weight_is_within_half_a_step(n, k, exponent, kind):
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n * k)) * 2.0**exponent
    codes, scale = quantize_rows(weight, kind)
    assert codes.dtype == KINDS[kind].dtype
    assert codes.itemsize == 1
    error = (codes.float() * scale[:, None] - weight).abs()
    step = scale[:, None] / 2 if kind == "int8" else torch.maximum(weight.abs() / 16, scale[:, None] * 2**-10)
    assert bool((error <= step * 1.0001).all())


@BOTH
def test_rows_of_zeros_and_rows_of_one_peak(kind):
    weight = torch.zeros(3, 5)
    weight[1, 2], weight[2] = -7.0, 1e-3
    codes, scale = quantize_rows(weight, kind)
    torch.testing.assert_close(codes.float() * scale[:, None], weight)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_computes_what_its_written_out_weights_would(kind, dtype):
    linear = linear_of(kind).to(dtype)
    x = torch.randn(2, 5, 16, dtype=dtype)
    exact = F.linear(x.float(), linear.weight.float() * linear.weight_scale[:, None], linear.bias.float())
    y = linear(x)
    assert y.dtype == dtype
    torch.testing.assert_close(
        y.float(), exact, rtol=0, atol=3 * torch.finfo(dtype).eps * float(exact.abs().max())
    )


@pytest.fixture
def integers(monkeypatch):
    """Integer products wherever they are possible, however slow they are here."""
    monkeypatch.setattr(module, "integer_products", lambda device: True)


def written_out(linear, x):
    return F.linear(x.float(), linear.weight.float() * linear.weight_scale[:, None], linear.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [32, 33, 100])
def test_integer_products_round_each_row_by_its_own_scale(integers, monkeypatch, rows, dtype):
    monkeypatch.setitem(module._PART_BYTES, "cpu", 1)  # as many parts as there can be
    linear = linear_of("int8", n=48, k=64)
    x = (torch.randn(rows, 64) * torch.logspace(-6, 6, rows)[:, None]).to(dtype)
    y = linear.to(dtype)(x)
    exact = written_out(linear.float(), x)
    assert y.dtype == dtype
    per_row = (y.float() - exact).norm(dim=1) / exact.norm(dim=1)
    assert 1e-4 < float(per_row.max()) < 0.02  # rounded, and no small row is lost beside a large one


def test_integer_products_keep_the_leading_axes_and_take_no_bias(integers):
    linear = linear_of("int8", n=8, k=8, bias=False)
    x = torch.randn(3, 4, 5, 8)
    together = linear(x)
    assert together.shape == (3, 4, 5, 8)
    torch.testing.assert_close(together.flatten(0, 2), linear(x.flatten(0, 2)))
    assert bool((linear(torch.zeros(64, 8)) == 0).all())


def test_integer_products_do_not_hide_what_is_not_finite(integers):
    x = torch.randn(40, 16)
    x[3, 5], x[7, 0] = float("nan"), float("inf")
    y = linear_of("int8")(x)
    bad = ~torch.isfinite(y).all(dim=1)
    assert bad.nonzero().flatten().tolist() == [3, 7]


@pytest.mark.parametrize(("n", "k", "rows"), [(24, 16, 31), (20, 16, 64), (24, 12, 64)])
def test_what_integer_products_cannot_take_is_written_out(integers, n, k, rows):
    linear, x = linear_of("int8", n, k), torch.randn(rows, k)
    torch.testing.assert_close(linear(x), written_out(linear, x))


def test_gradients_reach_the_input_but_never_the_weights(integers, trained, condition):
    linear, x = linear_of("int8"), torch.randn(64, 16, requires_grad=True)
    linear(x).sum().backward()
    wanted = (linear.weight.float() * linear.weight_scale[:, None]).sum(0)
    torch.testing.assert_close(x.grad, wanted.expand(64, -1))
    assert linear.weight.grad is None
    quantize_generator(trained, "int8")
    tokens = condition.tokens.clone().requires_grad_()
    sum(B.sum() for _, B in trained(Condition(tokens, condition.mask)).values()).backward()
    assert float(tokens.grad.abs().sum()) > 0


def wide(n_layers=2, d_model=64) -> ParameterGenerator:
    torch.manual_seed(0)
    band = Band("blocks", 3, (ModuleShape("to_q", 64, 64), ModuleShape("up", 64, 128)))
    config = GeneratorConfig(DIM, d_model=d_model, n_layers=n_layers, n_heads=4)
    generator = ParameterGenerator(config, LoraSpec((band,), rank=4))
    torch.nn.init.normal_(generator.proj_out_B.weight, std=0.1)
    return generator.eval()


@pytest.mark.parametrize("all_integers", [False, True])
@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.03), ("fp8", 0.06)])
def test_a_quantised_generator_stays_near(kind, bound, all_integers, monkeypatch, condition):
    monkeypatch.setattr(module, "integer_products", lambda device: all_integers)
    generator = wide()
    with torch.no_grad():
        exact = generator(condition)
        quantized = quantize_generator(copy.deepcopy(generator), kind)(condition)
    assert 1e-4 < update_error(quantized, exact) < bound


@BOTH
def test_a_byte_a_weight(kind):
    generator = wide()
    n_parameters = generator.n_parameters
    linears = [m for m in generator.blocks.modules() if isinstance(m, torch.nn.Linear)]
    n_weights, n_outputs = sum(m.weight.numel() for m in linears), sum(m.out_features for m in linears)
    rest = sum(t.nbytes for t in generator.state_dict().values()) - 4 * n_weights
    quantize_generator(generator, kind)
    assert sum(t.nbytes for t in generator.state_dict().values()) == rest + n_weights + 4 * n_outputs
    assert generator.n_parameters == n_parameters
    assert quantization_of(generator) == kind
    assert not any(isinstance(m, torch.nn.Linear) for m in generator.blocks.modules())
    assert isinstance(generator.condition_in, torch.nn.Linear)
    assert isinstance(generator.proj_out_B, torch.nn.Linear)


@BOTH
def test_moves_and_casts_leave_codes_and_scales_alone(kind, condition):
    generator = quantize_generator(wide(), kind)
    before = {name: t.clone() for name, t in generator.state_dict().items()}
    for cast in (torch.bfloat16, torch.float64, torch.float32):
        generator.to(dtype=cast)
        generator.to("cpu")
        assert generator.dtype == cast
        for name, tensor in generator.state_dict().items():
            if name.endswith("weight_scale") or tensor.dtype == KINDS[kind].dtype:
                assert tensor.dtype == before[name].dtype
                assert torch.equal(tensor.float(), before[name].float())
    generator.bfloat16()(condition).check()
    moved = copy.deepcopy(generator).to("meta")
    assert {t.device.type for t in moved.state_dict().values()} == {"meta"}
    assert moved.blocks[0].feed_forward.fc1.weight.dtype == KINDS[kind].dtype


@BOTH
@pytest.mark.parametrize("released", [False, True])
def test_quantised_on_the_way_in_and_never_there_in_full(tmp_path, kind, released, monkeypatch):
    generator = wide(n_layers=6)
    if released:
        band = Band("layers", 3, (ModuleShape("to_q", 64, 64),))
        config = GeneratorConfig(DIM, d_model=64, n_layers=6, n_heads=4, output_gain="none")
        generator = ParameterGenerator(config, LoraSpec((band,), rank=4, alpha=4), flat_layout())
        path = save_release(generator, tmp_path / "release", max_shard_bytes=300_000)
    else:
        path = save_generator(tmp_path / "g.safetensors", generator, {"id": "e"}, {"id": "b"}, {"steps": 3})
    monkeypatch.setattr(module, "_CHUNK", 4096)
    with LiveBytes() as live:
        loaded = load_generator(path, quantize=kind)
    wanted = quantize_generator(generator, kind).state_dict()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == wanted[name].dtype
        assert torch.equal(tensor.float(), wanted[name].float()), name
    assert not loaded.training
    size = sum(t.nbytes for t in loaded.state_dict().values())
    largest = max(4 * t.numel() for t in wanted.values())
    full = sum(4 * t.numel() for t in wanted.values())
    assert live.peak < size + 3 * largest < full
    if not released:
        assert (loaded.encoder_info, loaded.backbone_info, loaded.provenance) == (
            {"id": "e"}, {"id": "b"}, {"steps": 3}
        )  # fmt: skip


def flat_layout():
    from hywu_core.tokens import TokenLayout

    return TokenLayout("flat", 16)


@BOTH
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_saved_and_read_again(tmp_path, kind, dtype, condition):
    generator = quantize_generator(wide(), kind)
    path = save_generator(tmp_path / "g.safetensors", generator, dtype=dtype)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["hywu.quantization"]) == {"kind": kind}
        assert file.metadata()["hywu.generator_version"] == "2"
        assert file.get_slice("blocks.0.feed_forward.fc1.weight").get_dtype() == KINDS[kind].stored_as
    again = load_generator(path)
    assert again.dtype == (dtype or torch.float32)
    assert load_generator(path, dtype=torch.float64, quantize=kind).dtype == torch.float64
    if dtype is None:
        exact, wanted = named(again(condition)), named(generator(condition))
        assert all(torch.equal(exact[name], wanted[name]) for name in wanted)
    assert quantization_of(again) == kind


def test_full_files_stay_readable_to_the_first_readers(tmp_path):
    with safe_open(save_generator(tmp_path / "g.safetensors", wide()), framework="pt") as file:
        assert file.metadata()["hywu.generator_version"] == "1"
        assert "hywu.quantization" not in file.metadata()


@BOTH
def test_it_is_not_trained(kind, tmp_path):
    generator = quantize_generator(wide(), kind)
    assert not any(p.requires_grad for p in generator.parameters())
    with pytest.raises(HywuError, match=f"quantised to {kind} and cannot be trained"):
        generator.train()
    generator.eval()
    with pytest.raises(HywuError, match=f"no place for a generator quantised to {kind}; use save_generator"):
        save_release(generator, tmp_path / "folder")


def test_other_kinds_are_refused(tmp_path, release):
    generator = quantize_generator(wide(), "int8")
    with pytest.raises(
        HywuError, match="quantised to int8 already; quantise the one in full precision to fp8"
    ):
        quantize_generator(generator, "fp8")
    path = save_generator(tmp_path / "g.safetensors", generator)
    with pytest.raises(HywuError, match=r"g\.safetensors is quantised to int8 already; to have it in fp8"):
        load_generator(path, quantize="fp8")
    for place in (path, release):
        with pytest.raises(HywuError, match="cannot be quantised to 'int4'; choose one of int8, fp8"):
            load_generator(place, quantize="int4")


def changed(path, metadata=None, tensors=None):
    with safe_open(path, framework="pt") as file:
        header = file.metadata() | (metadata or {})
    save_file(load_file(path) | (tensors or {}), path, {k: v for k, v in header.items() if v is not None})


FC1 = "blocks.0.feed_forward.fc1"


@pytest.mark.parametrize(
    ("metadata", "tensors", "complaint"),
    [
        ({"hywu.quantization": None}, {}, "damaged header: 'hywu.quantization' is missing or unknown"),
        ({"hywu.quantization": '{"kind": "int3"}'}, {}, "'hywu.quantization' is missing or unknown"),
        ({"hywu.quantization": '["int8"]'}, {}, "'hywu.quantization' is missing or unknown"),
        ({"hywu.quantization": '{"kind": "fp8"}'}, {}, r"weight is stored as I8, not F8_E4M3"),
        ({"hywu.generator_version": "1"}, {}, r"has blocks\.0\.\S+weight_scale and \d+ more beside the \d+"),
        ({}, {f"{FC1}.weight": torch.zeros(256, 64)}, rf"{FC1}\.weight is stored as F32, not I8"),
        (
            {},
            {f"{FC1}.weight_scale": torch.zeros(255)},
            r"weight_scale has the shape \(255,\) instead of \(256,\)",
        ),
        (
            {},
            {f"{FC1}.weight_scale": torch.full((256,), torch.nan)},
            "256 of the 256 values of .*weight_scale",
        ),
    ],
)
def test_a_damaged_quantised_file(tmp_path, metadata, tensors, complaint):
    path = save_generator(tmp_path / "g.safetensors", quantize_generator(wide(), "int8"))
    changed(path, metadata, tensors)
    with pytest.raises(HywuError, match=rf"g\.safetensors .*{complaint}"):
        load_generator(path)


def test_codes_that_are_not_numbers(tmp_path):
    path = save_generator(tmp_path / "g.safetensors", quantize_generator(wide(), "fp8"))
    codes = load_file(path)[f"{FC1}.weight"].view(torch.uint8).fill_(0x7F).view(torch.float8_e4m3fn)
    changed(path, tensors={f"{FC1}.weight": codes})
    with pytest.raises(
        HywuError, match=rf"damaged: 16384 of the 16384 values of {FC1}\.weight are not finite"
    ):
        load_generator(path)


def test_training_does_not_begin_with_one(tmp_path):
    from hywu_core.embedded import GENERATOR
    from hywu_core.train.warm_start import warm_start

    generator = load_generator(GENERATOR, quantize="int8")
    path = save_generator(tmp_path / "g.safetensors", generator)
    with pytest.raises(HywuError, match=r"g\.safetensors is quantised to int8; training begins with .* full"):
        warm_start(load_generator(GENERATOR), path)
