"""The quantising study: errors of updates counted right, small on the shipped generator, and reported."""

import json

import pytest
import torch

from hywu_core.embedded import GENERATOR
from hywu_core.errors import HywuError
from hywu_core.generator import load_generator, save_generator
from hywu_core.lora import Adapter
from hywu_core.pipeline import HywuPipeline
from hywu_core.studies import quantise
from hywu_core.studies.quantise import PRECISIONS, Compared, compare, report, summarise, update_errors
from hywu_core.study import main
from hywu_core.train.world import held_out_cases


def adapter_of(*updates, scale=1.0):
    """An adapter whose updates are the given rank-one matrices (P, d_out, d_in)."""
    weights = {}
    for number, update in enumerate(updates):
        u, s, v = torch.linalg.svd(update)
        weights[f"t{number}"] = (v[:, :1] * s[:, :1, None], u[:, :, :1])
    return Adapter(weights, scale)


def test_the_error_is_that_of_the_whole_update():
    full = adapter_of(torch.diag(torch.tensor([3.0, 0.0]))[None], torch.diag(torch.tensor([0.0, 4.0]))[None])
    off = adapter_of(torch.diag(torch.tensor([3.0, 0.0]))[None], torch.diag(torch.tensor([0.0, 6.0]))[None])
    assert update_errors(full, full)[0] == pytest.approx((0.0, 1.0), abs=1e-6)
    assert update_errors(off, full)[0] == pytest.approx((2 / 5, (9 + 24) / (5 * 45**0.5)), rel=1e-5)


def test_the_scale_belongs_to_the_update_and_each_adapter_counts_for_itself():
    update = torch.diag(torch.tensor([1.0, 0.0])).expand(2, 2, 2) * torch.tensor([1.0, 5.0])[:, None, None]
    (first, _), (second, _) = update_errors(adapter_of(update, scale=1.5), adapter_of(update))
    assert (first, second) == pytest.approx((0.5, 0.5))
    other = update.clone()
    other[1] *= 2
    (first, _), (second, _) = update_errors(adapter_of(other), adapter_of(update))
    assert (first, second) == pytest.approx((0.0, 1.0), abs=1e-6)


@pytest.fixture(scope="module")
def found():
    """The shipped generator on a small photograph, in every precision."""
    cases = held_out_cases(FEW, 1, 1, area=96 * 96)
    return compare(HywuPipeline.from_embedded(), GENERATOR, cases, steps=2)


FEW = ("cyanotype", "black_frame")


@pytest.mark.parametrize(
    ("name", "error", "decibels"),
    [("bfloat16", 0.012, 40), ("int8", 0.02, 38), ("int8, weights only", 0.012, 40), ("fp8", 0.05, 32)],
)
def test_the_shipped_generator_loses_little(found, name, error, decibels):
    part = found[name]
    assert 0 < part["worst_update_error"] < error
    assert part["worst_cosine"] > 0.998
    assert part["worst_to_full_db"] > decibels
    assert abs(part["change_to_exact_db"]) < 0.5


def test_what_is_compared_with_is_float32_whatever_the_file_is_in(tmp_path, monkeypatch):
    path = save_generator(tmp_path / "bf16.safetensors", load_generator(GENERATOR, dtype=torch.bfloat16))
    seen = {}
    monkeypatch.setattr(quantise, "compare", lambda pipeline, *_: seen.update(p=pipeline) or {})
    found = quantise.run(quantise.QuantiseConfig(generator=path, photos=1, every=40, device="cpu"), None)
    assert next(seen["p"].generator.parameters()).dtype == torch.float32
    assert found["float32"]["bytes"] > 1.9 * path.stat().st_size
    whole = quantise._load(path, torch.device("cpu"), *PRECISIONS["int8"])
    assert whole.prior_norm.weight.dtype == torch.float32
    packed = save_generator(tmp_path / "int8.safetensors", whole)
    with pytest.raises(HywuError, match=r"int8\.safetensors is in int8 already"):
        quantise.run(quantise.QuantiseConfig(generator=packed, photos=1, device="cpu"), None)


def test_a_byte_is_less_than_four(found):
    assert found["int8"]["bytes"] == found["fp8"]["bytes"] < found["bfloat16"]["bytes"]
    assert found.keys() == PRECISIONS.keys()


def test_the_report_prints_the_numbers_of_the_json():
    rows = [
        Compared(0, "warm", 0.01, 0.9999, 50.0, 20.1, 20.0),
        Compared(0, "cool", 0.03, 0.9991, 40.0, 19.0, 19.5),
    ]
    summary = summarise(rows)
    assert summary["update_error"] == pytest.approx(0.02)
    assert summary["worst_update_error"] == 0.03
    assert summary["worst_to_full_db"] == 40.0
    assert summary["change_to_exact_db"] == pytest.approx(-0.2)
    result = {
        "config": {"steps": 8},
        "photographs": 1,
        "operations": ["warm", "cool"],
        "integer_products": True,
        "float32": {"bytes": 40_000_000},
        "precisions": {"int8": {"bytes": 10_400_000, **summary}},
    }
    text = report(json.loads(json.dumps(result)))
    for shown in ("40.0", "| int8 | 10.4 | 2.00% | 3.00% | 0.99910 | 45.0 | 40.0 | -0.200 | -0.50 |"):
        assert shown in text


def test_a_generator_that_changes_nothing_is_a_sentence(tmp_path):
    generator = load_generator(GENERATOR)
    torch.nn.init.zeros_(generator.proj_out_B.weight)
    torch.nn.init.zeros_(generator.proj_out_B.bias)
    save_generator(tmp_path / "fresh.safetensors", generator)
    given = ("--quick", "--every", 40, "--steps", 1, "--generator", tmp_path / "fresh.safetensors")
    with pytest.raises(HywuError, match="writes a zero update for"):
        main([str(word) for word in ("quantise", *given, "--out", tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_bad_generator_leaves_nothing_behind(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        main(["quantise", "--out", str(tmp_path / "out"), "--generator", str(tmp_path / "bad.safetensors")])
    assert not (tmp_path / "out").exists()
