import errno
import json
import math
from functools import reduce
from operator import getitem

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hywu_core.storage
from hywu_core.errors import HywuError
from hywu_core.generator import GeneratorConfig, ParameterGenerator, load_generator, save_generator

ENCODER = {"kind": "siglip2", "id": "google/siglip2-base-patch16-256", "dim": 12}
BACKBONE = {"kind": "embedded", "id": "tiny", "sha256": "0" * 64}


@pytest.fixture
def path(tmp_path, trained):
    return save_generator(tmp_path / "g.safetensors", trained, ENCODER, BACKBONE, {"recipe": "test"})


def rewrite(path, change_tensors=None, **metadata):
    """Write the file again with some tensors or header entries changed; None removes an entry."""
    with safe_open(path, framework="pt") as file:
        header = {k: v for k, v in (file.metadata() | metadata).items() if v is not None}
    tensors = load_file(path)
    if change_tensors:
        change_tensors(tensors)
    save_file(tensors, path, header)


def test_round_trip_is_exact(path, trained, condition):
    loaded = load_generator(path)
    assert (loaded.config, loaded.spec, loaded.layout) == (trained.config, trained.spec, trained.layout)
    assert (loaded.encoder_info, loaded.backbone_info) == (ENCODER, BACKBONE)
    assert loaded.provenance == {"recipe": "test"}
    torch.testing.assert_close(loaded.state_dict(), trained.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        wanted, got = trained(condition), loaded(condition)
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=0)
    assert all(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("output_gain", ["none", "learned"])
def test_other_gains_round_trip(tmp_path, spec, output_gain):
    config = GeneratorConfig(4, d_model=8, n_layers=1, n_heads=1, output_gain=output_gain)
    generator = ParameterGenerator(config, spec)
    loaded = load_generator(save_generator(tmp_path / "g.safetensors", generator))
    torch.testing.assert_close(loaded.state_dict(), generator.state_dict(), rtol=0, atol=0)


def test_what_it_carries_is_saved_again(path, tmp_path):
    again = load_generator(save_generator(tmp_path / "again.safetensors", load_generator(path)))
    assert (again.encoder_info, again.backbone_info) == (ENCODER, BACKBONE)
    assert again.provenance == {"recipe": "test"}


def test_stored_and_compute_dtype_are_independent(tmp_path, trained):
    path = save_generator(tmp_path / "half.safetensors", trained, dtype=torch.float16)
    assert {t.dtype for t in load_file(path).values()} == {torch.float16}
    assert load_generator(path).dtype == torch.float32
    assert load_generator(path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert trained.dtype == torch.float32
    torch.testing.assert_close(
        load_generator(path).state_dict(), trained.half().float().state_dict(), rtol=0, atol=0
    )


def test_a_loaded_generator_does_not_hang_on_its_file(path):
    loaded = load_generator(path)
    before = {name: t.clone() for name, t in loaded.state_dict().items()}
    path.write_bytes(bytes(path.stat().st_size))
    torch.testing.assert_close(loaded.state_dict(), before, rtol=0, atol=0)


def test_missing_file(tmp_path):
    with pytest.raises(HywuError, match=r"no file .*nowhere\.safetensors"):
        load_generator(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 200, 0.5, 0.99])
def test_truncated_file(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(HywuError, match=r"g\.safetensors is not a complete safetensors file"):
        load_generator(path)


def test_foreign_file(tmp_path):
    save_file({"lora_A.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(
        HywuError, match=r"lora\.safetensors is a safetensors file, but not a HY-WU generator"
    ):
        load_generator(tmp_path / "lora.safetensors")


def test_newer_format(path):
    rewrite(path, **{"hywu.generator_version": "99"})
    with pytest.raises(HywuError, match=r"g\.safetensors is a HY-WU generator of format 99"):
        load_generator(path)


@pytest.mark.parametrize("value", [None, "{", "[1]"])
@pytest.mark.parametrize("field", ["config", "spec", "layout", "encoder", "backbone", "provenance"])
def test_damaged_header(path, field, value):
    rewrite(path, **{f"hywu.{field}": value})
    with pytest.raises(HywuError, match=rf"g\.safetensors has a damaged header: 'hywu\.{field}'"):
        load_generator(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config", {"condition_dim": 12, "d_model": 17}),
        ("config", {"condition_dim": 12, "depth": 17}),
        ("spec", {}),
        ("spec", {"rank": 4, "alpha": 1, "bands": []}),
        ("layout", {"kind": "spiral"}),
        ("layout", {"length": 3}),
    ],
)
def test_impossible_description(path, field, value):
    rewrite(path, **{f"hywu.{field}": json.dumps(value)})
    with pytest.raises(HywuError, match=r"g\.safetensors describes a generator that cannot be built: "):
        load_generator(path)


HUGE = {  # a field of the header, the keys to a number in it, and what that cannot be
    "an infinite rank": ("spec", ("rank",), math.inf),
    "an infinite layer": ("spec", ("bands", 0, "layers", 0), math.inf),
    "an infinite segment": ("layout", ("segment",), math.inf),
    "a segment that is no number": ("layout", ("segment",), math.nan),
    "an alpha beyond all floats": ("spec", ("alpha",), 10**400),
    "a rank beyond all tensors": ("spec", ("rank",), 10**30),
    "dims beyond all tensors": ("spec", ("bands", 0, "modules", 0, "d_in"), 2**70),
    "a width beyond all tensors": ("config", ("d_model",), 2**40),
    "a condition beyond all tensors": ("config", ("condition_dim",), 2**62),
    "an inner width beyond all tensors": ("config", ("mlp_ratio",), 1e300),
    "a segment beyond all tensors": ("layout", ("segment",), 2**62),
}


@pytest.mark.parametrize("case", HUGE)
def test_numbers_that_nothing_can_have_are_one_sentence(path, case):
    field, keys, number = HUGE[case]
    with safe_open(path, framework="pt") as file:
        values = json.loads(file.metadata()[f"hywu.{field}"])
    *outer, last = keys
    reduce(getitem, outer, values)[last] = number
    rewrite(path, **{f"hywu.{field}": json.dumps(values)})
    with pytest.raises(HywuError, match=r"g\.safetensors describes a generator that .*: .") as refusal:
        load_generator(path)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_header_nested_beyond_reading_is_damaged(path):
    rewrite(path, **{"hywu.provenance": "[" * 100_000})
    with pytest.raises(HywuError, match=r"g\.safetensors has a damaged header: 'hywu\.provenance'"):
        load_generator(path)


def test_tensors_that_are_not_the_configs(path, trained):
    n = len(trained.state_dict())

    def drop(tensors):
        del tensors["blocks.1.feed_forward.fc1.weight"]

    def add(tensors):
        tensors["blocks.9.weight"], tensors["blocks.10.weight"] = torch.zeros(1), torch.zeros(1)

    def reshape(tensors):
        tensors["condition_in.weight"] = torch.zeros(3, 12)

    original = path.read_bytes()
    for change, complaint in (
        (drop, rf"lacks blocks\.1\.feed_forward\.fc1\.weight of the {n} tensors"),
        (add, rf"has blocks\.10\.weight and 1 more beside the {n} tensors"),
        (reshape, r"condition_in\.weight has the shape \(3, 12\) instead of \(16, 12\)"),
    ):
        path.write_bytes(original)
        rewrite(path, change)
        with pytest.raises(HywuError, match=rf"g\.safetensors .*{complaint}"):
            load_generator(path)


def test_nan_is_refused_both_ways(path, trained, tmp_path):
    def poison(tensors):
        tensors["bands.1.layer"][0, 0] = float("nan")

    rewrite(path, poison)
    with pytest.raises(HywuError, match=r"g\.safetensors is damaged: 1 of the 24 values of bands\.1\.layer"):
        load_generator(path)
    with torch.no_grad():
        trained.final_norm.weight[:2] = 1e30
    target = tmp_path / "half.safetensors"
    with pytest.raises(
        HywuError, match=r"half\.safetensors: as torch\.float16, 2 of the 16 values of final_norm"
    ):
        save_generator(target, trained, dtype=torch.float16)
    assert not target.exists()


def test_information_must_be_plain_data(tmp_path, trained):
    with pytest.raises(HywuError, match="its description is not plain data"):
        save_generator(tmp_path / "g.safetensors", trained, encoder={"model": trained})


def test_a_full_disk_leaves_nothing_and_keeps_the_old_file(path, trained, monkeypatch):
    def full(tensors, filename, metadata):
        filename.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(hywu_core.storage, "save_file", full)
    for target in (path, path.with_name("new.safetensors")):
        with pytest.raises(HywuError, match=rf"{target.name}.*No space left"):
            save_generator(target, trained)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_missing_folder_is_named(tmp_path, trained):
    with pytest.raises(HywuError, match="nowhere does not exist"):
        save_generator(tmp_path / "nowhere" / "g.safetensors", trained)
