"""One sentence for whatever is wrong with a folder of the release's format."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hywu_core.errors import HywuError
from hywu_core.generator import ParameterGenerator, load_generator, save_generator

from .live_bytes import LiveBytes
from .releases import INDEX, Golden


def edit_json(path: Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_shard(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def put(name, value):
    return lambda values: values.__setitem__(name, value)


def cut(name):
    return lambda values: values.__delitem__(name)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (put("model_type", "llama"), "model_type is 'llama' instead of 'parameter_generator'"),
        (cut("model_type"), "model_type is None"),
        (cut("rank"), "rank is None; it must be an integer"),
        (put("rank", 4.5), "rank is 4.5; it must be an integer"),
        (put("num_base_model_layers", 10**12), "num_base_model_layers is 1000000000000"),
        (put("num_pg_layers", 2**20), "num_pg_layers is 1048576; it must be an integer from 1 to 1024"),
        (put("num_base_model_layers", 2**20), "num_base_model_layers is 1048576; it must be an integer"),
        (put("rank", 3), "accumulation 2 does not divide the rank 3"),
        (put("alpha", "16"), "alpha is '16'"),
        (put("alpha", -1), "alpha is -1"),
        (put("alpha", 10**400), "alpha is 10"),
        (put("prefix", None), "prefix is None"),
        (put("output_dim", 9), "output_dim is 9 and token_dim 8"),
        (put("head_dim", 7), "d_model 16 is no multiple of head_dim 7"),
        (put("head_dim", 2), "needs a multiple of 4"),
        (cut("pg_mapping"), "pg_mapping is not a table"),
        (put("pg_mapping", {}), "at least one of each"),
        (put("pg_mapping", {"x": 3}), "pg_mapping is not a table"),
        (put("pg_mapping", {"x": {"lora_A_dim": 3}}), "lora_B_dim of x is None"),
        (put("pg_mapping", {"x": {"type": "grouped", "num_experts": 2}}), "not a table .*sub_weights"),
        (put("pg_mapping", {"x": {"bias": 1}}), "gives x the unknown field bias"),
    ],
)
def test_a_config_that_cannot_be(release, change, complaint):
    edit_json(release / "config.json", change)
    match = rf"config\.json describes a generator that cannot be built: .*{complaint}"
    with pytest.raises(HywuError, match=match):
        load_generator(release)


def test_sizes_that_are_too_large_only_together(release):
    most = 2**20
    dims = {"lora_A_dim": most, "lora_B_dim": most}
    edit_json(
        release / "config.json",
        lambda values: values.update(
            {"token_dim": 1, "output_dim": 1, "rank": most, "d_model": most, "dim_accumulation": 1}
            | {"pg_mapping": {"x": {"type": "grouped", "num_experts": most, "sub_weights": {"y": dims}}}}
        ),
    )
    with pytest.raises(HywuError, match=r"config\.json describes a generator that .*: .") as refusal:
        load_generator(release)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        (
            "num_pg_layers",
            3,
            r"lacks model\.blocks\.2\.\S+ and \d+ more of the \d+ tensors its config describes",
        ),
        (
            "num_pg_layers",
            1,
            r"has model\.blocks\.1\.\S+ and \d+ more beside the \d+ tensors its config describes",
        ),
        (
            "input_dim",
            7,
            r"contradicts its config: hidden_in\.weight has the shape \(16, 6\) instead of \(16, 7\)",
        ),
        ("num_base_model_layers", 5, r"model\.layer_pos\.weight has the shape \(2, 8\) instead of \(5, 8\)"),
    ],
)
def test_a_config_that_contradicts_its_tensors(release, field, value, complaint, monkeypatch):
    monkeypatch.setattr(ParameterGenerator, "load_state_dict", None)  # said before anything is loaded
    edit_json(release / "config.json", put(field, value))
    with pytest.raises(HywuError, match=f"release .*{complaint}"):
        load_generator(release)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (cut("hidden_in.bias"), r"lacks hidden_in\.bias of the \d+ tensors"),
        (put("model.extra", torch.zeros(1)), r"has model\.extra beside the \d+ tensors"),
        (
            put("model.blocks.0.self_attn_cross.W_k.weight", torch.zeros(16, 15)),
            r"model\.blocks\.0\.self_attn_cross\.W_k\.weight has the shape \(16, 15\) instead of \(16, 16\)",
        ),
        (put("hidden_in.bias", torch.zeros(16)), "stored as BF16, F32; they must be .* all the same"),
        (put("hidden_in.bias", torch.zeros(16, dtype=torch.int8)), "stored as BF16, I8; they must be"),
        (
            put("hidden_in.bias", torch.full((16,), float("nan"), dtype=torch.bfloat16)),
            r"model\.safetensors is damaged: 16 of the 16 values of hidden_in\.bias are not finite",
        ),
    ],
)
def test_tensors_that_are_not_the_configs(tmp_path, change, complaint):
    release = Golden("experts").write(tmp_path / "release", 1)
    edit_shard(release / "model.safetensors", change)
    with pytest.raises(HywuError, match=f"release.*{complaint}"):
        load_generator(release)


def test_mixed_dtypes_are_fine_where_one_is_asked_for(tmp_path):
    release = Golden("experts").write(tmp_path / "release", 1)
    edit_shard(release / "model.safetensors", put("hidden_in.bias", torch.zeros(16)))
    assert load_generator(release, dtype=torch.float16).dtype == torch.float16


@pytest.mark.parametrize("keep", [0, 4, 0.5, 0.99])
def test_a_truncated_shard(release, keep):
    shard = release / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(
        HywuError, match=r"model-00002-of-00002\.safetensors is not a complete safetensors file"
    ):
        load_generator(release)


def shards_of(change):
    return lambda index: change(index["weight_map"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            shards_of(put("hidden_in.bias", "model-00003-of-00002.safetensors")),
            r"index\.json names the shard model-00003-of-00002\.safetensors, which is not in the folder",
        ),
        (
            shards_of(put("hidden_in.bias", "../x.safetensors")),
            "'../x.safetensors', which is not a plain file",
        ),
        (shards_of(put("hidden_in.bias", r"C:\x")), "which is not a plain file name"),
        (shards_of(put("hidden_in.bias", "")), "the shard '', which is not a plain file name"),
        (shards_of(put("hidden_in.bias", None)), "its weight_map is not a table"),
        (shards_of(cut("hidden_in.bias")), r"its shards disagree about where hidden_in\.bias is"),
        (
            shards_of(put("model.extra", "model-00002-of-00002.safetensors")),
            r"its shards disagree about where model\.extra is",
        ),
        (cut("weight_map"), "its weight_map is not a table"),
    ],
)
def test_an_index_that_is_wrong(release, change, complaint):
    edit_json(release / INDEX, change)
    with pytest.raises(HywuError, match=complaint):
        load_generator(release)


def test_a_tensor_in_two_shards(release):
    hidden_in = Golden("experts").weights["hidden_in.bias"]
    for path in release.glob("*.safetensors"):
        edit_shard(path, put("hidden_in.bias", hidden_in))
    with pytest.raises(HywuError, match=r"its shards disagree about where hidden_in\.bias is"):
        load_generator(release)


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_damaged_json(release, name, content):
    (release / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(HywuError, match=rf"{name} is damaged: it is not "):
        load_generator(release)


def test_a_folder_without_a_generator(release):
    (release / INDEX).unlink()
    with pytest.raises(HywuError, match=r"has neither model\.safetensors nor .*index\.json"):
        load_generator(release)
    (release / "config.json").unlink()
    with pytest.raises(HywuError, match=r"Cannot read .*config\.json: No such file"):
        load_generator(release)


def in_the_last_shard(change):
    return lambda folder: edit_shard(folder / "model-00002-of-00002.safetensors", change)


def in_the_config(change):
    return lambda folder: edit_json(folder / "config.json", change)


def cut_short(folder):
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


WRONG = {
    "a shard cut short by one byte": cut_short,
    "a shard missing": lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(),
    "a tensor missing": in_the_last_shard(lambda tensors: tensors.popitem()),
    "an unknown tensor": in_the_last_shard(put("model.extra", torch.zeros(1))),
    "a tensor of another shape": in_the_last_shard(
        lambda tensors: tensors.update(
            {name: t.new_zeros(*t.shape, 2) for name, t in list(tensors.items())[:1]}
        )
    ),
    "a tensor of another dtype": in_the_last_shard(
        lambda tensors: tensors.update({name: t.float() for name, t in list(tensors.items())[:1]})
    ),
    "a wider config": in_the_config(put("d_model", 2**20)),
    "a config of more layers": in_the_config(put("num_pg_layers", 8)),
    "a config of far more layers": in_the_config(put("num_pg_layers", 2**20)),
    "a config of more experts": in_the_config(
        lambda c: c["pg_mapping"]["mlp.experts"].__setitem__("num_experts", 2**20)
    ),
    "another model": in_the_config(put("model_type", "siglip2")),
}


@pytest.mark.parametrize("quantize", [None, "int8", "fp8"])
@pytest.mark.parametrize("wrong", WRONG)
def test_it_is_said_before_memory_is_spent(release, wrong, quantize):
    """Not one tensor is made: headers and config tell, also where the weights would be quantised."""
    WRONG[wrong](release)
    with LiveBytes() as live, pytest.raises(HywuError) as said:
        load_generator(release, quantize=quantize)
    assert live.peak == 0
    assert str(release) in str(said.value)
    assert len(str(said.value).splitlines()) == 1


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("wrong", ["cut", "layers", "width"])
def test_nor_for_a_file_of_our_own(tmp_path, trained, wrong, quantize):
    path = save_generator(tmp_path / "g.safetensors", trained)
    if wrong == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        config = json.loads(header["hywu.config"])
        config |= {"n_layers": 10**9} if wrong == "layers" else {"d_model": 2**20}
        save_file(load_file(path), path, header | {"hywu.config": json.dumps(config)})
    with LiveBytes() as live, pytest.raises(HywuError, match=r"g\.safetensors"):
        load_generator(path, quantize=quantize)
    assert live.peak == 0


@pytest.mark.parametrize("quantize", [None, "int8", "fp8"])
def test_a_damaged_number_is_said_with_its_shard(release, quantize):
    in_the_last_shard(lambda tensors: next(iter(tensors.values())).fill_(float("inf")))(release)
    with pytest.raises(HywuError, match=r"00002-of-00002\.safetensors is damaged: \d+ of the \d+ values of"):
        load_generator(release, quantize=quantize)
