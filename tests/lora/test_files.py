import contextlib
import itertools
import json
import math
import os
import sys
from datetime import datetime

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hywu_core import storage
from hywu_core.errors import HywuError
from hywu_core.lora import Adapter, load_adapter, save_adapter, save_peft
from hywu_core.lora.files import check_saving, read_adapter

from .test_keys import CONTAINERS

FLUX_NAMES = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.ff.net.2",
    "single_transformer_blocks.1.proj_out",
)
RELEASE_NAMES = ("model.layers.0.self_attn.qkv_proj", "model.layers.0.mlp.experts.w1")


def adapter_of(names=FLUX_NAMES, batch=2, rank=3, scale=0.5, dtype=torch.float32, provenance=None):
    def pair(name):
        experts = (2,) if "experts" in name else ()
        return torch.randn(batch, *experts, rank, 6), torch.randn(batch, *experts, 4, rank)

    return Adapter({name: pair(name) for name in names}, scale, provenance).to(dtype=dtype)


def update(adapter, name, index=0):
    A, B = adapter[name]
    return adapter.scale * B[index].float() @ A[index].float()


@settings(deadline=None, max_examples=40)
@given(
    names=st.sampled_from([FLUX_NAMES, FLUX_NAMES[:1], RELEASE_NAMES]),
    key_format=st.sampled_from(["auto", "native"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    strength=st.sampled_from([1.0, 0.0, -0.75, 2.0]),
    rank=st.integers(1, 4),
    index=st.integers(0, 1),
)
def test_what_is_saved_comes_back(tmp_path_factory, names, key_format, dtype, strength, rank, index):
    adapter = adapter_of(names, rank=rank, dtype=dtype)
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    save_adapter(adapter, path, index=index, strength=strength, key_format=key_format)
    loaded = load_adapter(path)
    assert loaded.keys() == adapter.keys()
    assert (loaded.batch, loaded.rank, loaded.dtype) == (1, rank, dtype)
    native = loaded.provenance["key_format"] == "native"
    assert loaded.scale == (0.5 * strength if native else 1.0)
    baked = 1.0 if native else 0.5 * strength
    for name, (A, B) in adapter.items():
        assert torch.equal(loaded[name][0][0], A[index])
        assert torch.equal(loaded[name][1][0], (B[index].float() * baked).to(dtype))


def test_the_scale_is_baked_into_b_and_there_is_no_alpha(tmp_path):
    adapter = adapter_of(scale=0.25)
    path = save_adapter(adapter, tmp_path / "x.safetensors", index=1, strength=2.0)
    tensors = load_file(path)
    assert set(tensors) == {f"transformer.{n}.lora_{x}.weight" for n in FLUX_NAMES for x in "AB"}
    for name in FLUX_NAMES:
        A, B = adapter[name]
        assert torch.equal(tensors[f"transformer.{name}.lora_A.weight"], A[1])
        assert torch.equal(tensors[f"transformer.{name}.lora_B.weight"], B[1] * 0.5)


def test_a_native_file_keeps_the_scale_beside_the_factors(tmp_path):
    adapter = adapter_of(RELEASE_NAMES, scale=4.0)
    path = save_adapter(adapter, tmp_path / "x.safetensors", strength=0.5)
    assert torch.equal(load_file(path)[f"{RELEASE_NAMES[0]}.lora_B.weight"], adapter[RELEASE_NAMES[0]][1][0])
    assert load_adapter(path).scale == 2.0
    assert load_adapter(path)[RELEASE_NAMES[1]][0].shape == (1, 2, 3, 6)


def test_the_header_says_what_it_is_and_where_it_comes_from(tmp_path):
    adapter = adapter_of(provenance={"base": "flux-x", "generator_sha256": "ab"})
    path = save_adapter(adapter, tmp_path / "old photo.safetensors", strength=0.5, metadata={"ss_tag": "y"})
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["format"] == "pt"
    assert header["modelspec.sai_model_spec"] == "1.0.0"
    assert header["modelspec.architecture"] == "Flux.1-dev/lora"
    assert header["modelspec.title"] == "old photo"
    assert header["ss_network_dim"] == header["ss_network_alpha"] == "3"
    assert header["hywu.strength"] == "0.5"
    assert header["ss_tag"] == "y"
    assert header["hywu.generator_sha256"] == "ab"
    assert load_adapter(path).provenance["base"] == "flux-x"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names are text on this system")
@pytest.mark.parametrize("save", [save_adapter, save_peft])
def test_a_name_with_bytes_of_no_text_is_a_title_without_them(tmp_path, save):
    path = save(adapter_of(), tmp_path / "old\udcff").rename(tmp_path / "old")  # which safetensors can open
    with safe_open(path if path.is_file() else path / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata()["modelspec.title"] == "old?"


def test_a_lora_of_longcat_does_not_pass_for_one_of_flux(tmp_path):
    adapter = adapter_of(provenance={"base": "meituan-longcat/LongCat-Image-Edit"})
    with safe_open(save_adapter(adapter, tmp_path / "x.safetensors"), "pt") as file:
        header = file.metadata()
    assert header["modelspec.architecture"] == "LongCat-Image-Edit/lora"
    assert header["ss_base_model_version"] == "longcat_image"


QWEN_NAMES = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mod.1")


def test_the_header_has_every_line_that_model_managers_and_we_read(tmp_path):
    provenance = {
        "base": "Qwen/Qwen-Image-Edit-2509",
        "encoder": "google/siglip2-so400m-patch14-384",
        "generator_sha256": "ab" * 32,
        "condition_sha256": "cd" * 32,
        "prompt": "make it old",
    }
    adapter = adapter_of(QWEN_NAMES, provenance=provenance)
    path = save_adapter(adapter, tmp_path / "x.safetensors", index=1, strength=-0.5)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert datetime.fromisoformat(header.pop("modelspec.date")).tzinfo is not None
    assert header == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "Qwen-Image-Edit-Plus/lora",
        "modelspec.title": "x",
        "modelspec.implementation": "hywu",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "3",
        "ss_network_alpha": "3",
        "ss_base_model_version": "qwen_image",
        "hywu.format_version": "1",
        "hywu.key_format": "comfy",
        "hywu.scale": "1.0",
        "hywu.strength": "-0.5",
        "hywu.base": "Qwen/Qwen-Image-Edit-2509",
        "hywu.encoder": "google/siglip2-so400m-patch14-384",
        "hywu.generator_sha256": "ab" * 32,
        "hywu.condition_sha256": "cd" * 32,
    }
    with safe_open(save_peft(adapter, tmp_path / "peft") / "adapter_model.safetensors", "pt") as file:
        in_folder = file.metadata()
    assert in_folder["hywu.generator_sha256"] == "ab" * 32
    assert "make it old" not in str(in_folder)


def test_each_lora_of_a_batch_takes_its_own_origin_into_its_file(tmp_path):
    rows = [{"condition_sha256": str(i), "prompt": f"words {i}"} for i in range(2)]
    adapter = Adapter(adapter_of(), provenance={"base": "m"}, rows=rows)
    for i in range(2):
        path = save_adapter(adapter, tmp_path / f"{i}.safetensors", index=i, include_prompt=True)
        loaded = load_adapter(path)
        assert [dict(row) for row in loaded.rows] == [rows[i]]
        assert "prompt" not in loaded.provenance
    both = Adapter.stack([load_adapter(tmp_path / f"{i}.safetensors") for i in range(2)])
    assert [dict(row) for row in both.rows] == rows
    with safe_open(save_adapter(both, tmp_path / "x.safetensors", index=1), "pt") as file:
        header = file.metadata()
    assert header["hywu.condition_sha256"] == "1"
    assert "hywu.prompt" not in header


@pytest.mark.parametrize("save", [save_adapter, save_peft])
def test_the_prompt_is_written_only_when_asked_and_never_passed_on_by_itself(tmp_path, save):
    adapter = adapter_of(provenance={"prompt": "make it old"})
    told = load_adapter(save(adapter, tmp_path / "a", include_prompt=True))
    again = save(told, tmp_path / "b")
    for where, known in ((tmp_path / "a", True), (tmp_path / "b", False)):
        files = [where] if where.is_file() else list(where.iterdir())
        assert any(b"make it old" in file.read_bytes() for file in files) == known
    assert "prompt" not in load_adapter(again).provenance


def test_strengths_of_saving_twice_multiply(tmp_path):
    first = load_adapter(save_adapter(adapter_of(), tmp_path / "a.safetensors", strength=0.5))
    second = load_adapter(save_adapter(first, tmp_path / "b.safetensors", strength=3.0))
    assert second.provenance["strength"] == "1.5"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_files_are_read_exactly(tmp_path, dtype):
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    finite = every.float().isfinite()
    values = every.view(torch.uint8)[finite].view(dtype)[None]
    file = {"x.lora_A.weight": values, "x.lora_B.weight": torch.ones(2, 1).to(dtype)}
    save_file(file, tmp_path / "x.safetensors")
    loaded = load_adapter(tmp_path / "x.safetensors")
    assert loaded.dtype == torch.float16
    assert torch.equal(loaded["x"][0][0].float(), values.float())


def test_the_weights_of_a_peft_folder_are_read_with_their_configuration(tmp_path):
    adapter = adapter_of(scale=0.5)
    folder = save_peft(adapter, tmp_path / "peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 6}))
    loaded = load_adapter(folder / "adapter_model.safetensors")
    torch.testing.assert_close(update(loaded, FLUX_NAMES[0]), 2 * update(adapter, FLUX_NAMES[0]))


def test_a_native_adapter_saved_as_a_folder_is_scaled_once(tmp_path):
    adapter = adapter_of(RELEASE_NAMES[:1], scale=4.0)
    native = load_adapter(save_adapter(adapter, tmp_path / "a.safetensors"))
    loaded = load_adapter(save_peft(native, tmp_path / "b"))
    torch.testing.assert_close(update(loaded, RELEASE_NAMES[0]), update(adapter, RELEASE_NAMES[0]))


def test_saving_a_loaded_adapter_again_does_not_bake_twice(tmp_path):
    adapter = adapter_of(RELEASE_NAMES, scale=4.0)
    first = load_adapter(save_adapter(adapter, tmp_path / "a.safetensors", strength=0.5))
    second = load_adapter(save_adapter(first, tmp_path / "b.safetensors"))
    assert torch.equal(update(first, RELEASE_NAMES[0]), update(second, RELEASE_NAMES[0]))


def test_ranks_may_differ_and_alphas_too(tmp_path):
    file = {}
    for name, rank, alpha in (("a", 2, 2.0), ("b", 4, 1.0)):
        file[f"{name}.lora_down.weight"] = torch.randn(rank, 6)
        file[f"{name}.lora_up.weight"] = torch.randn(5, rank)
        file[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(file, tmp_path / "x.safetensors")
    loaded = load_adapter(tmp_path / "x.safetensors")
    assert (loaded.rank, loaded.scale) == (4, 1.0)
    assert torch.equal(loaded["a"][0][0, 2:], torch.zeros(2, 6))
    for name, factor in (("a", 1.0), ("b", 0.25)):
        expected = factor * file[f"{name}.lora_up.weight"] @ file[f"{name}.lora_down.weight"]
        torch.testing.assert_close(update(loaded, name), expected)


def test_one_alpha_for_all_becomes_the_scale_and_leaves_b_as_it_is(tmp_path):
    file = {"a.lora_down.weight": torch.randn(4, 6), "a.lora_up.weight": torch.randn(5, 4).bfloat16()}
    save_file({**file, "a.alpha": torch.tensor(3.0)}, tmp_path / "x.safetensors")
    loaded = load_adapter(tmp_path / "x.safetensors")
    assert loaded.scale == 0.75
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded["a"][1][0], file["a.lora_up.weight"].float())


def test_what_is_left_out_of_a_file_is_counted(tmp_path):
    file = {f"{m}.lora_{x}.weight": torch.ones(2, 2) for m in ("x.y", "text_encoder.z") for x in "AB"}
    save_file(file, tmp_path / "both.safetensors")
    adapter, of_text_encoders, growth = read_adapter(tmp_path / "both.safetensors")
    assert list(adapter) == ["x.y"]
    assert of_text_encoders == 2
    assert growth == 1


def test_how_much_larger_different_ranks_make_it_is_known(tmp_path):
    file = {"x.lora_A.weight": torch.ones(2, 8), "x.lora_B.weight": torch.ones(8, 2)}
    file |= {"y.lora_A.weight": torch.ones(6, 8), "y.lora_B.weight": torch.ones(8, 6)}
    save_file(file, tmp_path / "mixed.safetensors")
    loaded = read_adapter(tmp_path / "mixed.safetensors")
    assert loaded.adapter.rank == 6
    assert loaded.growth == 12 / 8


def test_a_loaded_adapter_does_not_change_with_its_file(tmp_path):
    path = save_adapter(adapter_of(), tmp_path / "x.safetensors")
    loaded = load_adapter(path)
    before = loaded.clone()
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(loaded[n][i], before[n][i]) for n in loaded for i in (0, 1))


def test_peft_directory_round_trip(tmp_path):
    adapter = adapter_of(scale=0.5)
    folder = save_peft(adapter, tmp_path / "peft" / "x", index=1)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3
    loaded = load_adapter(folder)
    for name in adapter:
        torch.testing.assert_close(update(loaded, name), update(adapter, name, 1))


@settings(deadline=None, max_examples=30)
@given(
    containers=st.lists(st.sampled_from(CONTAINERS), max_size=3).map("".join),
    name=st.sampled_from(["h.0.attn.c_attn", *FLUX_NAMES, "double_blocks.0.img_attn.qkv", "text_encoder.x"]),
)
def test_a_peft_directory_keeps_the_whole_name_of_a_target(tmp_path_factory, containers, name):
    adapter = adapter_of([containers + name])
    folder = save_peft(adapter, tmp_path_factory.mktemp("peft") / "x")
    loaded = load_adapter(folder)
    assert loaded.keys() == adapter.keys()
    assert loaded.provenance["key_format"] == "native"
    torch.testing.assert_close(update(loaded, containers + name), update(adapter, containers + name))


def test_a_peft_folder_of_fused_names_has_the_scale_of_its_own_names_and_ranks(tmp_path):
    name, width, rank = "double_blocks.0.img_attn.qkv", 6, 3
    folder = tmp_path / "peft"
    folder.mkdir()
    A, B = torch.randn(rank, width), torch.block_diag(*torch.randn(3, width, rank // 3))
    save_file(
        {f"base_model.model.{name}.lora_A.weight": A, f"base_model.model.{name}.lora_B.weight": B},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "alpha_pattern": {name: 2 * rank}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    loaded = load_adapter(folder)
    whole = torch.cat([update(loaded, f"transformer_blocks.0.attn.to_{part}") for part in "qkv"])
    torch.testing.assert_close(whole, 2 * B @ A)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 0}, "its rank is 0"),
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "LOHA"}, "PEFT's LOHA"),
        ({"alpha_pattern": {"(": 2}}, "damaged"),
    ],
)
def test_peft_options_that_change_the_meaning_are_refused(tmp_path, change, message):
    folder = save_peft(adapter_of(), tmp_path / "x")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(HywuError, match=message):
        load_adapter(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_adapter_is_neither_written_nor_read(tmp_path, value):
    adapter = adapter_of()
    adapter[FLUX_NAMES[1]][1][0, 2, 1] = value
    with pytest.raises(HywuError, match=f"B of '{FLUX_NAMES[1]}'"):
        save_adapter(adapter, tmp_path / "x.safetensors")
    with pytest.raises(HywuError, match=f"B of '{FLUX_NAMES[1]}'"):
        save_peft(adapter, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    tensors = {
        f"transformer.{n}.lora_{x}.weight": adapter[n][i][0] for n in adapter for i, x in enumerate("AB")
    }
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "bad.safetensors")
    with pytest.raises(HywuError, match=rf"bad\.safetensors.*B of '{FLUX_NAMES[1]}'"):
        load_adapter(tmp_path / "bad.safetensors")


def test_numbers_that_overflow_the_dtype_of_the_file_are_refused(tmp_path):
    adapter = adapter_of()
    large = adapter.map(lambda t: t * 1e6)
    with pytest.raises(
        HywuError, match=r"values beyond what float16 can hold; choose bfloat16 or float32\.$"
    ):
        save_adapter(large, tmp_path / "x.safetensors", dtype=torch.float16)
    for save in (save_adapter, save_peft):
        with pytest.raises(HywuError) as refused:
            save(adapter, tmp_path / "x", strength=1e6, dtype=torch.float16)
        assert str(refused.value) == (
            "At strength 1e+06 the LoRA has values beyond what float16 can hold; choose bfloat16 or float32, "
            "or lower the strength."
        )
    with pytest.raises(HywuError, match=r"At strength 1e.39 .* what float32 can hold; lower the strength"):
        save_adapter(adapter, tmp_path / "x.safetensors", strength=1e39)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_is_checked_as_it_will_be_written_before_any_of_it_is():
    adapter = adapter_of()
    check_saving(adapter, 2.0, torch.float16)
    adapter[FLUX_NAMES[1]][1][1] = 6e4  # times the scale 0.5 it is one of float16's
    check_saving(adapter, 2.0, torch.float16)
    with pytest.raises(HywuError, match="LoRA 1: At strength -4 the LoRA has values beyond what float16"):
        check_saving(adapter, -4.0, torch.float16)
    check_saving(adapter, -4.0)
    check_saving(adapter, -4.0, torch.float16, key_format="native")  # keeps the strength beside
    with pytest.raises(HywuError, match="LoRA 1: At strength -4"):
        check_saving(adapter, -4.0, torch.float16, key_format=None)
    adapter[FLUX_NAMES[0]][0][1] = math.nan
    with pytest.raises(HywuError, match="LoRA 1: The adapter has NaN"):
        check_saving(adapter)


@pytest.mark.parametrize("key_format", ["auto", "native"])
@pytest.mark.parametrize(("scale", "strength"), [(0.5, math.nan), (0.5, -math.inf), (1e200, 1e200)])
def test_a_strength_that_is_not_finite_is_refused_before_anything_is_written(
    tmp_path, key_format, scale, strength
):
    adapter = adapter_of(RELEASE_NAMES if key_format == "native" else FLUX_NAMES, scale=scale)
    with pytest.raises(HywuError, match=rf"strength {strength:g}".replace("+", r"\+")):
        save_adapter(adapter, tmp_path / "x.safetensors", strength=strength, key_format=key_format)
    with pytest.raises(HywuError, match=rf"LoRA 0: .*strength {strength:g}".replace("+", r"\+")):
        check_saving(adapter, strength, key_format=key_format)
    assert list(tmp_path.iterdir()) == []


def test_only_the_other_adapters_of_a_batch_may_be_broken(tmp_path):
    adapter = adapter_of()
    adapter[FLUX_NAMES[0]][0][1] = math.nan
    save_adapter(adapter, tmp_path / "x.safetensors", index=0)
    with pytest.raises(HywuError, match="only 2"):
        save_adapter(adapter, tmp_path / "y.safetensors", index=2)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damaged_files_give_an_error_or_the_same_adapter(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    good = save_adapter(adapter_of(), folder / "good.safetensors").read_bytes()
    kind = data.draw(st.sampled_from(["truncate", "flip a header byte", "append", "foreign"]))
    if kind == "truncate":
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    elif kind == "append":
        bad = good + data.draw(st.binary(min_size=1, max_size=64))
    elif kind == "foreign":
        bad = data.draw(st.binary(max_size=256))
    else:
        at = data.draw(st.integers(0, 8 + int.from_bytes(good[:8], "little") - 1))
        bad = good[:at] + bytes([good[at] ^ (1 << data.draw(st.integers(0, 7)))]) + good[at + 1 :]
    path = folder / "bad.safetensors"
    path.write_bytes(bad)
    if kind == "flip a header byte":  # in a name or in the metadata, that is no damage one can see
        with contextlib.suppress(HywuError):
            load_adapter(path).check()
    else:
        with pytest.raises(HywuError, match=r"bad\.safetensors"):
            load_adapter(path)
    assert sorted(p.name for p in folder.iterdir()) == ["bad.safetensors", "good.safetensors"]


def test_other_peoples_safetensors_are_refused_by_name(tmp_path):
    save_file({"model.weight": torch.zeros(2)}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(HywuError, match=r"checkpoint\.safetensors.*model\.weight"):
        load_adapter(tmp_path / "checkpoint.safetensors")
    integers = {f"a.lora_{x}.weight": torch.ones(1, 1, dtype=torch.int8) for x in "AB"}
    save_file(integers, tmp_path / "int.safetensors")
    with pytest.raises(HywuError, match="int8"):
        load_adapter(tmp_path / "int.safetensors")


@pytest.mark.parametrize("scale", ["twelve", "nan"])
def test_a_header_with_a_scale_that_is_no_number_is_refused(tmp_path, scale):
    path = tmp_path / "x.safetensors"
    save_adapter(adapter_of(), path, metadata={"hywu.scale": scale})
    with pytest.raises(HywuError, match=scale):
        load_adapter(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(HywuError, match="no file"):
        load_adapter(tmp_path / "nowhere.safetensors")
    with pytest.raises(HywuError, match="not a PEFT directory"):
        load_adapter(tmp_path)
    with pytest.raises(HywuError, match="does not exist"):
        save_adapter(adapter_of(), tmp_path / "no" / "x.safetensors")
    with pytest.raises(HywuError, match="is a folder"):
        save_adapter(adapter_of(), tmp_path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = save_adapter(adapter_of(), tmp_path / "x.safetensors")
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(HywuError, match="No space left"):
        save_adapter(adapter_of(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_full_disk_leaves_the_old_folder_or_none(tmp_path, monkeypatch, old, fails_at):
    folder = tmp_path / "peft" / "x"
    if old:
        save_peft(adapter_of(rank=2), folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fsync, calls = os.fsync, itertools.count(1)

    def full(descriptor):
        if next(calls) >= fails_at:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(HywuError, match="No space left"):
        save_peft(adapter_of(rank=4), folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert old or not list(tmp_path.iterdir())


def test_a_folder_whose_configuration_cannot_be_replaced_keeps_its_weights(tmp_path):
    folder = save_peft(adapter_of(rank=2), tmp_path / "x")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").mkdir()
    with pytest.raises(HywuError, match="is a folder"):
        save_peft(adapter_of(rank=4), folder)
    assert (folder / "adapter_model.safetensors").read_bytes() == weights
