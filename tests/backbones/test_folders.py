"""Folders as people have them: whole, of a transformer alone, of another model, damaged; offline always."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from hywu_core.backbones.base import EditBackbone
from hywu_core.backbones.flux_kontext import FluxKontext
from hywu_core.backbones.qwen_image_edit import QwenImageEdit
from hywu_core.backbones.registry import backbone_class, detect, kinds
from hywu_core.embedded import BACKBONE
from hywu_core.errors import HywuError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def kontext(folders, tmp_path) -> Path:
    """A copy that may be broken."""
    return shutil.copytree(folders["flux_kontext"], tmp_path / "kontext")


def load_both(backbone: type[EditBackbone], model: Path | str) -> None:
    backbone.load_encoders(model)
    backbone.load_transformer(model)


@pytest.mark.parametrize("kind", ["flux_kontext", "qwen_image_edit", "longcat_image_edit"])
def test_kinds_are_found_out(kind, folders):
    assert detect(folders[kind]) is backbone_class(kind)
    assert detect(folders[kind] / "transformer") is backbone_class(kind)
    assert detect(BACKBONE).kind == "embedded"


def test_unknown_kinds_are_named():
    with pytest.raises(HywuError, match="no backbone 'sdxl'; there are flux_kontext"):
        backbone_class("sdxl")
    assert set(kinds()) == {"flux_kontext", "qwen_image_edit", "longcat_image_edit", "embedded"}


def test_a_transformer_alone_is_enough(kontext):
    whole = FluxKontext.load_transformer(kontext)
    alone = FluxKontext.load_transformer(kontext / "transformer")
    assert alone.backbone_info() == whole.backbone_info() == {"kind": "flux_kontext", "id": "kontext"}
    for part in kontext.iterdir():
        if part.name == "model_index.json":
            part.unlink()
        elif part.name != "transformer":
            shutil.rmtree(part)
    again = FluxKontext.load_transformer(kontext)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    with pytest.raises(HywuError, match="model_index"):
        FluxKontext.load_encoders(kontext)


def test_encoders_do_not_need_the_transformer(kontext):
    shutil.rmtree(kontext / "transformer")
    assert FluxKontext.load_encoders(kontext).encode_text("snow")["embeds"].shape == (1, 512, 32)
    with pytest.raises(HywuError, match=r"config\.json"):
        FluxKontext.load_transformer(kontext)


def test_shards_are_read(kontext):
    tensors = load_file(kontext / "transformer" / WEIGHTS)
    whole = FluxKontext.load_transformer(kontext)
    in_shards(kontext / "transformer")
    parts = FluxKontext.load_transformer(kontext)
    assert len(tensors) > 2
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)


def test_encoder_id_says_what_encodings_depend_on(kontext, tmp_path):
    first = FluxKontext.load_encoders(kontext)
    assert first.encoder_id == FluxKontext.load_encoders(kontext).encoder_id
    assert first.encoder_id != FluxKontext.load_encoders(kontext, dtype=torch.float32).encoder_id
    assert first.encoder_id.startswith("flux_kontext ")
    assert first.encoder_id == FluxKontext.load_encoders(shutil.move(kontext, tmp_path / "moved")).encoder_id
    kontext = tmp_path / "moved"
    change(kontext / "transformer", lambda tensors: tensors["proj_out.bias"].add_(1))
    assert first.encoder_id == FluxKontext.load_encoders(kontext).encoder_id
    change(kontext / "vae", lambda tensors: tensors["encoder.conv_in.bias"].add_(1))
    changed = FluxKontext.load_encoders(kontext)
    changed.forget_text()
    assert changed.encoder_id != first.encoder_id
    picture = torch.rand(1, 3, 32, 32)
    assert not torch.equal(changed.encode_image(picture), first.encode_image(picture))


@pytest.mark.parametrize("sharded", [False, True])
def test_what_macos_leaves_beside_every_file_is_not_read(sharded, kontext):
    if sharded:
        in_shards(kontext / "transformer")
    first = FluxKontext.load_encoders(kontext)
    for file in [file for file in kontext.rglob("*") if file.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\xff")
    assert FluxKontext.load_encoders(kontext).encoder_id == first.encoder_id
    FluxKontext.load_transformer(kontext)


# What people's folders look like when something went wrong: (how, words of the sentence).
def in_shards(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    weight_map = {}
    for number in (0, 1):
        file = f"diffusion_pytorch_model-{number + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names[number::2]}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names[number::2], file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / WEIGHTS).unlink()


def lose_a_shard(folder: Path) -> None:
    in_shards(folder)
    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def change(folder: Path, how: Callable[[dict], object], file: str = WEIGHTS) -> None:
    tensors = load_file(folder / file)
    how(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


def edit_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), encoding="utf-8")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "There is no folder .*kontext"),
    "a pipeline of another model": (
        lambda f: edit_json(f / "model_index.json", _class_name="StableDiffusionPipeline"),
        "for StableDiffusionPipeline; the backbone flux_kontext needs one for FluxKontextPipeline",
    ),
    "another transformer": (
        lambda f: edit_json(f / "transformer" / "config.json", _class_name="SD3Transformer2DModel"),
        "is a SD3Transformer2DModel; this backbone needs a FluxTransformer2DModel",
    ),
    "no weights": (lambda f: (f / "transformer" / WEIGHTS).unlink(), "has no weights"),
    "truncated weights": (lambda f: truncate(f / "transformer" / WEIGHTS), "not a complete safetensors file"),
    "a missing shard": (
        lambda f: lose_a_shard(f / "transformer"),
        "lacks 1 of its 2 weights files, such as diffusion_pytorch_model-00002",
    ),
    "a missing weight": (
        lambda f: change(f / "transformer", lambda t: t.pop("proj_out.weight")),
        r"lacks 1 of the \d+ weights that its config.json describes, such as proj_out.weight",
    ),
    "another width": (
        lambda f: edit_json(f / "transformer" / "config.json", num_attention_heads=2),
        "by its config.json it has",
    ),
    "a broken config": (lambda f: truncate(f / "transformer" / "config.json"), "config.json is not readable"),
    "a broken index": (lambda f: (f / "model_index.json").write_text("[]"), "is not a JSON object"),
    "another autoencoder": (
        lambda f: edit_json(f / "model_index.json", vae=["diffusers", "AutoencoderTiny"]),
        "vae in .* is a AutoencoderTiny; this backbone needs a AutoencoderKL",
    ),
    "no text encoder": (lambda f: shutil.rmtree(f / "text_encoder_2"), "has no text_encoder_2"),
    "a text encoder without a weight": (
        lambda f: change(
            f / "text_encoder_2", lambda t: t.pop("encoder.final_layer_norm.weight"), "model.safetensors"
        ),
        "text_encoder_2 lacks 1 of its weights, such as encoder.final_layer_norm.weight",
    ),
    "a truncated text encoder": (
        lambda f: truncate(f / "text_encoder" / "model.safetensors"),
        "not a complete safetensors file",
    ),
    "a broken tokenizer": (
        lambda f: truncate(f / "tokenizer_2" / "tokenizer.json"),
        "tokenizer_2 cannot be loaded",
    ),
}


@pytest.mark.parametrize(("how", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_is_a_sentence(how, words, kontext):
    how(kontext)
    with pytest.raises(HywuError, match=words) as caught:
        load_both(FluxKontext, kontext)
    assert "\n" not in str(caught.value)


def test_the_folder_of_another_backbone_names_both(folders):
    with pytest.raises(HywuError, match=r"FluxKontextPipeline.*qwen_image_edit.*QwenImageEditPlusPipeline"):
        load_both(QwenImageEdit, folders["flux_kontext"])


def test_a_file_is_no_folder():
    with pytest.raises(HywuError, match="is a file"):
        FluxKontext.load_transformer(BACKBONE)


@pytest.mark.parametrize("name", ["somewhere/else/entirely", "missing", "../missing"])
def test_what_can_be_no_hub_id_is_a_missing_folder(name):
    with pytest.raises(HywuError, match="There is no folder"):
        FluxKontext.load_encoders(name)


def test_hub_ids_are_looked_up_in_the_cache_alone(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HywuError, match=r"somebody/tiny is no folder, nor in the Hugging Face cache"):
        FluxKontext.load_encoders("somebody/tiny")
    entry, commit = tmp_path / "models--somebody--tiny", "0" * 40
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(commit)
    shutil.copytree(folders["flux_kontext"], entry / "snapshots" / commit)
    assert detect("somebody/tiny") is FluxKontext
    assert FluxKontext.load_transformer("somebody/tiny").backbone_info()["id"] == "somebody/tiny"
    assert FluxKontext.load_encoders("somebody/tiny").id == "somebody/tiny"


def test_a_download_is_of_what_is_read_alone(folders, monkeypatch):
    asked = []

    def snapshot(id, *, allow_patterns, local_files_only):
        asked.append((id, local_files_only, allow_patterns))
        return str(folders["flux_kontext"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    FluxKontext.load_transformer("somebody/tiny", allow_download=True)
    assert {(id, local) for id, local, _ in asked} == {("somebody/tiny", False)}
    wanted = [pattern for *_, patterns in asked for pattern in patterns]
    assert "transformer/*.safetensors" in wanted
    assert not any(pattern.startswith(("vae", "text_encoder")) for pattern in wanted)
    assert "transformer/*.safetensors" not in asked[0][2]  # first the index, which may be another model's
