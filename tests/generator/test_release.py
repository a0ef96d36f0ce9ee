"""The release's folder: its authors' numbers, and its bytes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hywu_core.conditions import Condition
from hywu_core.errors import HywuError
from hywu_core.generator import GeneratorConfig, ParameterGenerator, load_generator, save_release
from hywu_core.generator.release_config import read_config
from hywu_core.lora import Adapter, Band, LoraSpec, ModuleShape
from hywu_core.tokens import TokenLayout

from .releases import INDEX, Golden

# What the authors published: 64 experts, and 719 + 660 tokens in each of 32 layers.
RELEASED = {
    "model_type": "parameter_generator",
    **{"token_dim": 1024, "output_dim": 1024, "rank": 16, "alpha": 64, "input_dim": 4096},
    **{"dim_accumulation": 4, "d_model": 4096, "head_dim": 128, "num_pg_layers": 24},
    **{"num_base_model_layers": 32, "prefix": "model.layers."},
    "pg_mapping": {
        "self_attn.qkv_proj": {"lora_A_dim": 4096, "lora_B_dim": 6144},
        "self_attn.o_proj": {"lora_A_dim": 4096, "lora_B_dim": 4096},
        "mlp.shared_mlp.gate_and_up_proj": {"lora_A_dim": 4096, "lora_B_dim": 6144},
        "mlp.shared_mlp.down_proj": {"lora_A_dim": 3072, "lora_B_dim": 4096},
        "mlp.experts": {
            "type": "grouped",
            "num_experts": 64,
            "sub_weights": {
                "w1": {"lora_A_dim": 4096, "lora_B_dim": 3072},
                "w2": {"lora_A_dim": 3072, "lora_B_dim": 4096},
                "w3": {"lora_A_dim": 4096, "lora_B_dim": 3072},
            },
        },
    },
}


@pytest.fixture(params=["plain", "experts"])
def golden(request) -> Golden:
    return Golden(request.param)


def flat(outputs) -> torch.Tensor:
    return torch.cat([outputs[name].float().flatten() for name in sorted(outputs)])


def named(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_{x}": t for name, pair in adapter.items() for x, t in zip("AB", pair, strict=True)}


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def assert_same_bytes(folder: Path, weights) -> None:
    written = all_tensors(folder)
    assert written.keys() == weights.keys()
    for name, tensor in weights.items():
        assert written[name].dtype == tensor.dtype, name
        assert torch.equal(written[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("n_shards", [1, 3])
def test_the_authors_numbers(golden, tmp_path, n_shards):
    generator = load_generator(golden.write(tmp_path / "release", n_shards), dtype=torch.float32)
    with torch.no_grad():
        adapter = generator(Condition(golden.condition))
    assert adapter.scale == golden.scale
    outputs, wanted = named(adapter), golden.outputs[torch.float32]
    assert {n: t.shape for n, t in outputs.items()} == {n: t.shape for n, t in wanted.items()}
    largest = max(float(t.abs().max()) for t in wanted.values())
    for name in wanted:
        torch.testing.assert_close(outputs[name], wanted[name], rtol=0, atol=1e-5 * largest)


def test_as_exact_as_the_authors_in_bfloat16(golden, tmp_path):
    generator = load_generator(golden.write(tmp_path / "release", 1))
    assert generator.dtype == torch.bfloat16  # as it is stored
    with torch.no_grad():
        ours = flat(named(generator(Condition(golden.condition))))
    exact, theirs = flat(golden.outputs[torch.float32]), flat(golden.outputs[torch.bfloat16])
    assert float((ours - exact).norm()) < 1.25 * float((theirs - exact).norm())


@pytest.mark.parametrize("max_shard_bytes", [1, 9_000, 10**9])
def test_written_back_byte_for_byte(golden, tmp_path, max_shard_bytes):
    generator = load_generator(golden.write(tmp_path / "release", 2))
    folder = save_release(generator, tmp_path / "back", max_shard_bytes=max_shard_bytes)
    assert_same_bytes(folder, golden.weights)
    assert (folder / INDEX).exists() == (max_shard_bytes < 10**9)
    config = json.loads((folder / "config.json").read_text())
    assert {name: config[name] for name in golden.config} == golden.config
    # The order is that of the tokens; a table sorted by name would be another generator.
    assert list(config["pg_mapping"]) == list(golden.config["pg_mapping"])
    again = load_generator(folder)
    torch.testing.assert_close(again.state_dict(), generator.state_dict(), rtol=0, atol=0)


def test_through_float32_and_back(golden, tmp_path):
    generator = load_generator(golden.write(tmp_path / "release", 1), dtype=torch.float32)
    assert_same_bytes(save_release(generator, tmp_path / "back", dtype=torch.bfloat16), golden.weights)


def test_the_published_size():
    with torch.device("meta"):
        generator = ParameterGenerator(*read_config(RELEASED))
    assert generator.bands[0].n_tokens == (719, 660)
    assert generator.n_parameters == 8_096_647_168
    assert generator.spec.scale == 4
    assert generator.spec.targets[0].name == "model.layers.0.self_attn.qkv_proj"
    w2 = generator.spec.targets[-2]
    assert (w2.name, w2.d_in, w2.d_out, w2.experts) == ("model.layers.31.mlp.experts.w2", 3072, 4096, 64)


def test_the_order_of_tokens_is_the_authors():
    """Theirs is that of the first key a name contains."""
    dims = {"lora_A_dim": 4, "lora_B_dim": 4}
    names = ["mlp.down", "self_attn", "mlp.down_proj", "a_mlp.down"]
    spec = read_config(RELEASED | {"pg_mapping": dict.fromkeys(names, dims)}).spec
    assert [m.name for m in spec.bands[0].modules] == ["mlp.down", "mlp.down_proj", "a_mlp.down", "self_attn"]


def test_it_can_be_trained_on_and_does_not_hang_on_its_files(release):
    generator = load_generator(release)
    before = {name: t.clone() for name, t in generator.state_dict().items()}
    for path in release.glob("*.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))
    torch.testing.assert_close(generator.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad and p.device.type == "cpu" for p in generator.parameters())


def test_nothing_is_in_memory_twice(release, monkeypatch):
    """One allocation per parameter, of its own size; what is read goes straight to its rows."""
    allocated = []
    empty = torch.empty

    def counted(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        if tensor.device.type != "meta":
            allocated.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch, "empty", counted)
    generator = load_generator(release)
    assert sorted(allocated) == sorted(p.numel() for p in generator.parameters())


def test_a_mismatched_condition_is_told_what_was_expected(release):
    with pytest.raises(HywuError, match=r"3 channels, but .* reads 6; .*the backbone's last hidden states"):
        load_generator(release)(Condition(torch.zeros(1, 2, 3)))


def test_a_linked_shard_is_followed(release, tmp_path):
    """The hub's cache holds links to files elsewhere."""
    shard = next(release.glob("*.safetensors"))
    shard.rename(tmp_path / "blob")
    try:
        shard.symlink_to(tmp_path / "blob")
    except OSError:
        pytest.skip("no links on this system")
    load_generator(release)


def flat_generator(layers=(0, 1), name="layers", gain="none", kind="flat", modules=None, **config):
    band = Band(name, len(layers), modules or (ModuleShape("to_q", 4, 4),), layers)
    generator_config = GeneratorConfig(3, d_model=8, n_layers=1, n_heads=1, output_gain=gain, **config)
    return ParameterGenerator(generator_config, LoraSpec((band,), rank=2), TokenLayout(kind, 4))


@pytest.mark.parametrize(
    ("generator", "complaint"),
    [
        (lambda: flat_generator(gain="fixed"), "generator's config"),
        (lambda: flat_generator(rope_theta=500.0), "generator's config"),
        (lambda: flat_generator(kind="rank_anchored"), "generator's layout"),
        (lambda: flat_generator(layers=(1, 2)), "generator's spec"),
        (lambda: flat_generator(modules=(ModuleShape("w1", 4, 4, experts=2),)), "generator's spec"),
        (lambda: flat_generator(name="a.{}.b"), "generator: prefix is 'a.{}.b.'"),
    ],
)
def test_what_the_format_cannot_express(tmp_path, generator, complaint):
    with pytest.raises(HywuError, match=f"format cannot express this {complaint}"):
        save_release(generator(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_our_own_generator_in_the_releases_format(tmp_path):
    generator = flat_generator()
    again = load_generator(save_release(generator, tmp_path / "out"))
    assert (again.config, again.spec, again.layout) == (generator.config, generator.spec, generator.layout)
    torch.testing.assert_close(again.state_dict(), generator.state_dict(), rtol=0, atol=0)


def test_a_folder_appears_whole_or_not_at_all(release, tmp_path, monkeypatch):
    generator = load_generator(release)
    with pytest.raises(HywuError, match="it exists already"):
        save_release(generator, release)
    with pytest.raises(HywuError, match="nowhere does not exist"):
        save_release(generator, tmp_path / "nowhere" / "out")
    with torch.no_grad():
        generator.final_norm.weight[:2] = 1e30
    with pytest.raises(
        HywuError, match=r"out: as torch\.float16, 2 of the 16 values of model\.norm_final\.weight"
    ):
        save_release(generator, tmp_path / "out", dtype=torch.float16, max_shard_bytes=9_000)
    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(HywuError, match=r"Could not write .*out: .*No space left"):
        save_release(generator, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")
