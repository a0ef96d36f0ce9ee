"""`python -m hywu_core.train --data PATH`: users' data sets, on the real layouts of the models they have."""

import importlib.util
import json
import re
import shutil
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hywu_core import Condition, cli, load_adapter, load_generator
from hywu_core.backbones.embedded_edit import EmbeddedEditBackbone
from hywu_core.backbones.registry import backbone_class
from hywu_core.cli import command
from hywu_core.conditions import SigLIP2Encoder
from hywu_core.errors import HywuError
from hywu_core.train.__main__ import _check_same, main
from hywu_core.train.encoded_edits import EncodedEdits
from hywu_core.train.paired import PairedTask, split

from ..commands import contents, refused, run, start
from ..data import paired_writers as conventions
from .own_data import QUICK, is_picture, quick, write_data, write_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One data set of six edits."""
    return write_data(tmp_path_factory.mktemp("data"), conventions.diffsynth_json)


@pytest.fixture
def train(models, tmp_path, monkeypatch):
    """Train in a folder of its own; further runs share the cache."""
    monkeypatch.chdir(tmp_path)

    def train(kind, data, *more, steps=2, encoder="siglip2", out="run"):
        arguments = ["--recipe", kind, "--data", data, "--steps", steps, "--out", out, *quick(*more)]
        if kind in models:
            arguments += ["--backbone", models[kind], "--encoder", models.get(encoder, encoder)]
        assert command(lambda: main([str(argument) for argument in arguments])) == 0
        return tmp_path / out

    return train


FIVE = (
    conventions.ai_toolkit,
    conventions.musubi_jsonl,
    conventions.diffsynth_csv,
    conventions.simpletuner,
    conventions.imagefolder_csv,
)


@pytest.mark.parametrize("convention", FIVE, ids=lambda c: c.__name__)
def test_every_convention_trains_kontext_to_a_generator_that_loads(convention, train, models, tmp_path):
    data = write_data(tmp_path / "data", convention)
    out = train("flux_kontext", data)
    generator = load_generator(out / "hywu_generator.safetensors")
    assert generator.backbone_info == {"kind": "flux_kontext", "id": "flux_kontext"}
    assert generator.encoder_info == SigLIP2Encoder.load(models["siglip2"]).info()
    backbone = backbone_class("flux_kontext").load_transformer(models["flux_kontext"], dtype=torch.float32)
    adapter = generator(Condition(torch.randn(1, 5, 16)))
    assert all(backbone.transformer.get_submodule(name) is not None for name in adapter)
    assert any(B.any() for _, B in adapter.values())  # two steps have moved it
    told = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert told["data"]["samples"] == 6
    assert told["versions"]["diffusers"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert {"held_out_loss", "held_out_loss_base"} < lines[-1].keys()
    assert is_picture(out / "samples" / "step_000002.png")


@pytest.mark.parametrize(
    ("kind", "controls", "encoder"),
    [
        ("qwen_image_edit", 2, "siglip2"),
        ("qwen_image_edit", 1, "backbone"),
        ("longcat_image_edit", 1, "siglip2"),
    ],
)
def test_other_backbones_with_several_pictures_and_with_their_own_text(
    kind, controls, encoder, train, tmp_path
):
    data = write_data(tmp_path / "data", conventions.musubi_folders, controls)
    out = train(kind, data, "--set", "noise_levels=2", encoder=encoder)
    generator = load_generator(out / "hywu_generator.safetensors")
    assert generator.backbone_info["kind"] == kind
    expected = {"siglip2": ("siglip2", "siglip2-tiny"), "backbone": ("backbone_hidden", kind)}[encoder]
    assert (generator.encoder_info["kind"], generator.encoder_info["id"]) == expected


def test_a_text_encoder_that_looks_at_pictures_sees_them_at_the_size_of_their_bucket(train, tmp_path, caplog):
    """LongCat's transformer knows no mask, and its text grows with the picture that is read with it."""
    data = write_data(tmp_path / "data", conventions.musubi_folders)
    for number, path in enumerate(sorted((tmp_path / "data" / "sources").iterdir())):
        with Image.open(path) as control:
            changed = control.resize((control.width + 24 * number, control.height))
        changed.save(path)
    train("longcat_image_edit", data, "--batch-size", 8)
    assert (
        "1 of the layouts have fewer samples (5 in all) than a batch of 8: a sample of these" in caplog.text
    )


def test_the_embedded_backbone_learns_somebodys_edit(data, train):
    arguments = (
        "--lr",
        "3e-3",
        "--set",
        "d_model=64",
        "--set",
        "prompt_dropout=0.1",
        "--set",
        "noise_levels=2",
    )
    out = train("embedded", data, *arguments, steps=30)
    last = json.loads((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert last["held_out_loss"] < 0.9 * last["held_out_loss_base"]
    assert "held-out edits the flow-matching loss is" in (out / "result.txt").read_text(encoding="utf-8")


def test_the_embedded_backbone_reads_silence_in_its_own_text(data, train):
    out = train("embedded", data, "--encoder", "backbone", "--set", "prompt_dropout=0.5", steps=2)
    assert load_generator(out / "hywu_generator.safetensors").n_parameters


@pytest.mark.parametrize(
    ("adaptation", "files"),
    [
        ("shared_lora", {"shared_lora.safetensors"}),
        ("single_lora", {"single_lora_000.safetensors", "single_lora_001.safetensors"}),
        ("sft", {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"}),
    ],
)
def test_the_baselines_leave_what_stock_loaders_open(adaptation, files, data, train):
    out = train("flux_kontext", data, "--adaptation", adaptation)
    assert files <= contents(out).keys()
    if adaptation == "sft":
        backbone = backbone_class("flux_kontext").load_transformer(out / "transformer", dtype=torch.float32)
        assert backbone.id == "run"
        return
    for name in files:
        adapter = load_adapter(out / name)
        assert "transformer_blocks.0.attn.to_q" in adapter
    if adaptation == "single_lora":
        said = {load_adapter(out / name).provenance["task"] for name in files}
        assert said == {"make it darker", "less light, please"}


def test_a_baseline_encodes_no_conditions(data, train, monkeypatch):
    monkeypatch.setattr(SigLIP2Encoder, "load", lambda *_, **__: pytest.fail("an encoder was loaded"))
    train("flux_kontext", data, "--adaptation", "shared_lora")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            (),
            r"1 of 6 samples have no control picture, such as .*cat_0\.png, and the condition encoder looks",
        ),
        (("--adaptation", "single_lora"), "The 6 samples have 6 different captions, and single_lora learns"),
    ],
)
def test_edits_that_cannot_be_learned_so_are_refused_before_anything_loads(
    more, sentence, tmp_path, capfd, monkeypatch
):
    data = write_data(tmp_path / "data", conventions.plain)
    for number, caption in enumerate(sorted((data / "targets").glob("*.txt"))):
        caption.write_text(f"do what {number} says", encoding="utf-8")
    sorted((data / "control_0").iterdir())[0].unlink()
    monkeypatch.setattr(EmbeddedEditBackbone, "load_encoders", lambda **_: pytest.fail("models were loaded"))
    given = ("--recipe", "embedded", "--data", data, "--allow-missing-controls", "--out", tmp_path / "run")
    before = contents(tmp_path)
    assert re.search(sentence, refused(main, *given, *more, folder=tmp_path, capfd=capfd))
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_the_fine_tuned_backbone_of_before(models, tmp_path):
    """The limit of a file's size stands for that of the disk: the weights do not fit, their config does."""
    resource = pytest.importorskip("resource")
    transformer = backbone_class("flux_kontext").load_transformer(models["flux_kontext"]).transformer
    task = SimpleNamespace(adaptation=SimpleNamespace(kind="sft"), transformer=transformer)
    PairedTask.save(task, tmp_path)
    before = contents(tmp_path)
    assert "transformer/config.json" in before
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(HywuError, match=r"Could not make the folder .*transformer: "):
            PairedTask.save(task, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before
    PairedTask.save(task, tmp_path)
    assert contents(tmp_path).keys() == before.keys()


def test_a_fine_tuned_backbone_moves_by_less_than_bfloat16_can_tell(data, train, models):
    """Steps of 1e-4 on weights of 1 are lost in bfloat16, whose next number is 1.008."""
    half = ("--precision", "bf16", "--set", "backbone_dtype=bf16", "--lr", 1e-4)
    out = train("flux_kontext", data, "--adaptation", "sft", *half)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    before, after = (load_file(folder / weights) for folder in (models["flux_kontext"], out))
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    norm = "transformer_blocks.0.attn.norm_q.weight"
    moved = (after[norm] - before[norm].bfloat16().float()).abs()
    assert 0 < moved.max() < 1e-3


def test_two_processes_show_a_backbone_that_they_fine_tune_in_pieces(data, models, tmp_path):
    """Its weights are float32, and bfloat16 whenever they are whole."""
    half = ("--precision", "bf16", "--set", "backbone_dtype=bf16", "--adaptation", "sft", "--steps", 1)
    named = ("--backbone", models["flux_kontext"], "--encoder", models["siglip2"], "--out", "run")
    arguments = ("--nproc-per-node", 2, "-m", "hywu_core.train", "--recipe", "flux_kontext", "--data", data)
    process = run("torch.distributed.run", *arguments, *quick(*half), *named, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "flow-matching loss is" in process.stdout


def test_interrupted_and_resumed_it_comes_to_the_same_bits(data, train, tmp_path, monkeypatch):
    whole = train("flux_kontext", data, "--set", "prompt_dropout=0.5", steps=4, out="whole")

    def pressed(task, size, generator, index, batch=PairedTask.batch):
        if index == 1:
            signal.raise_signal(signal.SIGINT)
        return batch(task, size, generator, index)

    monkeypatch.setattr(PairedTask, "batch", pressed)
    with pytest.raises(AssertionError, match="130"):
        train("flux_kontext", data, "--set", "prompt_dropout=0.5", steps=4, out="again")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command(lambda: main(["--resume", "again"])) == 0
    generators = [path / "hywu_generator.safetensors" for path in (whole, tmp_path / "again")]
    one, other = (load_generator(path).state_dict() for path in generators)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert (whole / "result.txt").read_bytes() == (tmp_path / "again" / "result.txt").read_bytes()
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4, 4]  # the last line is of what was shown


def test_two_processes_learn_the_same_as_one(data, train, models, tmp_path):
    more = ("--backbone", models["flux_kontext"], "--encoder", models["siglip2"], "--out", "two")
    more += ("--set", "noise_levels=2", "--batch-size", 4, "--set", "sample_every=2")
    one = train("flux_kontext", data, *more[6:], out="one", steps=3)
    arguments = ["--nproc-per-node", 2, "-m", "hywu_core.train", "--recipe", "flux_kontext", "--data", data]
    process = run("torch.distributed.run", *arguments, "--steps", 3, *QUICK, *more, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("Everything is in two.") == 1  # one of them speaks
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for folder in (one, tmp_path / "two")
    ]
    for ours, theirs in zip(*lines, strict=True):
        for name in {"step", "loss", "grad_norm", "held_out_loss"} & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
    one, two = (
        load_generator(f / "hywu_generator.safetensors").state_dict() for f in (one, tmp_path / "two")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0.02, atol=2e-5)  # kept in bfloat16


def test_a_batch_that_processes_cannot_share_is_refused_once_and_before_anything_is_encoded(data, tmp_path):
    before = contents(tmp_path)
    arguments = (
        "--nproc-per-node",
        2,
        "--monitor-interval",
        3,
        "-m",
        "hywu_core.train",
        "--recipe",
        "embedded",
    )
    arguments = (*arguments, "--data", data)
    process = run("torch.distributed.run", *arguments, "--batch-size", 3, "--device", "cpu", folder=tmp_path)
    said = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert said == ["error: The batch size 3 cannot be dealt out to 2 processes; take a multiple of 2."]
    assert contents(tmp_path) == before


def test_a_picture_that_one_process_cannot_read_ends_the_others_with_a_sentence(tmp_path, monkeypatch):
    data = write_data(tmp_path / "data", conventions.plain)
    damaged = sorted((data / "targets").glob("*.png"))[5]
    damaged.write_bytes(damaged.read_bytes()[:2000])  # found when it is encoded, by the second process
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    # As torchrun starts them, but nobody stops the other one.
    places = {"WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "LOCAL_RANK": 0}
    processes = []
    for rank in (0, 1):
        for name, value in (places | {"RANK": rank}).items():
            monkeypatch.setenv(name, str(value))
        arguments = ("--recipe", "embedded", "--data", data, *QUICK)
        processes.append(start("hywu_core.train", *arguments, folder=tmp_path))
    said = [process.communicate()[1].splitlines()[-1] for process in processes]
    assert said[0] == "error: A process of this run has ended or cannot be reached."
    assert re.search(f"error: .*{damaged.name} is damaged", said[1])
    assert [process.returncode for process in processes] == [2, 2]


def test_a_second_run_encodes_nothing_again(data, train, monkeypatch):
    train("flux_kontext", data)
    kontext = backbone_class("flux_kontext")
    for name in ("encode_image", "encode_text"):
        monkeypatch.setattr(kontext.encoders, name, lambda *_: pytest.fail("encoded again"))
    train("flux_kontext", data, out="second")


def test_a_resumed_run_must_find_the_same_data(train, tmp_path, capfd, monkeypatch):
    data = write_data(tmp_path / "data", conventions.plain)
    train("embedded", data)
    (data / "targets" / "cat_0.txt").write_text("make it brighter", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path / "run")
    assert command(lambda: main(["--resume", "run"])) == 2
    assert "The data set has changed since the run in run began" in capfd.readouterr().err.splitlines()[-1]
    assert contents(tmp_path / "run") == before


def test_a_resumed_run_must_find_the_same_models(data, models, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {n: shutil.copytree(models[n], tmp_path / models[n].name) for n in ("flux_kontext", "siglip2")}
    given = ("--recipe", "flux_kontext", "--data", data, "--steps", 2, "--out", "run", *QUICK)
    given += ("--backbone", folders["flux_kontext"], "--encoder", folders["siglip2"])
    assert command(lambda: main([str(argument) for argument in given])) == 0
    before = contents(tmp_path / "run")
    for file, model in (
        (folders["flux_kontext"] / "transformer" / "diffusion_pytorch_model.safetensors", "backbone"),
        (
            folders["flux_kontext"] / "vae" / "diffusion_pytorch_model.safetensors",
            "backbone's autoencoder or",
        ),
        (folders["siglip2"] / "model.safetensors", "condition encoder"),
    ):
        weights = load_file(file)
        original = file.read_bytes()
        save_file({name: tensor + 1 for name, tensor in weights.items()}, file, {"format": "pt"})
        assert command(lambda: main(["--resume", "run"])) == 2
        said = capfd.readouterr().err.splitlines()[-1]
        assert said.startswith(f"error: The {model}")
        assert "has changed since the run in run began" in said
        file.write_bytes(original)
    assert contents(tmp_path / "run") == before
    assert command(lambda: main(["--resume", "run"])) == 0


def test_what_an_earlier_version_did_not_note_down_is_not_compared():
    now = {"encoder": {"kind": "k", "sha256": "1"}, "backbone": "f"}
    for before in ({}, {"encoder": {"kind": "k"}}, {"encoder": None, "backbone": "f"}, now):
        _check_same(Path("run"), before, now)
    for before in ({"encoder": {"kind": "k", "sha256": "2"}}, {"backbone": "g"}):
        with pytest.raises(HywuError, match="has changed since the run in run began"):
            _check_same(Path("run"), before, now)


def test_what_is_held_out_is_never_trained_on():
    trained, held = split(20, 4, seed=1)
    assert len(held) == 4
    assert sorted(trained + held) == list(range(20))
    assert split(20, 4, seed=1) == (trained, held)
    assert split(20, 4, seed=2) != (trained, held)
    assert split(4, 4, seed=1) == ([0, 1, 2, 3], [])  # too few to spare any
    assert len(split(7, 4, seed=1)[1]) == 1


KONTEXT = ("--recipe", "flux_kontext", "--data", "{data}", "--backbone", "{flux_kontext}", "--device", "cpu")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--recipe", "flux_kontext"), "name a data set with --data PATH"),
        (("--recipe", "flux_kontext", "--data", "{data}"), "Name its folder or hub id with --backbone"),
        (("--recipe", "flux_kontext", "--data", "nowhere", "--backbone", "{flux_kontext}"), "no data set at"),
        (
            ("--recipe", "flux_kontext", "--data", "{data}", "--backbone", "nowhere"),
            "There is no folder nowhere",
        ),
        (
            ("--recipe", "qwen_image_edit", "--data", "{data}", "--backbone", "{flux_kontext}"),
            "is a model for FluxKontextPipeline; the backbone qwen_image_edit needs",
        ),
        (
            (
                "--recipe",
                "flux_kontext",
                "--data",
                "{data}",
                "--backbone",
                "{flux_kontext}",
                "--encoder",
                "no/such",
            ),
            "SigLIP2 model no/such cannot be loaded",
        ),
        (
            ("--recipe", "longcat_image_edit", "--data", "{two}", "--backbone", "{longcat_image_edit}"),
            "has 2 control pictures; the backbone longcat_image_edit takes 1",
        ),
        (("--recipe", "embedded_demo", "--data", "{data}"), "'embedded_demo' has no setting 'data'"),
        (("--recipe", "flux_kontext", "--quantize", "int8", "--adaptation", "sft"), "cannot be fine-tuned"),
        (("--recipe", "flux_kontext", "--set", "backbone_dtype=fp64"), "backbone_dtype is 'fp64'"),
        (("--recipe", "flux_kontext", "--set", "d_model=30"), "d_model 30"),
        (("--recipe", "embedded", "--data", "{data}", "--quantize", "int5"), "is small already; leave the"),
        ((*KONTEXT, "--quantize", "int5"), "no quantisation 'int5'; there are int8, fp8, nf4"),
        ((*KONTEXT, "--quantize", "nf4"), "nf4 is not possible on cpu"),
        ((*KONTEXT, "--set", "targets=*.nothing"), "No linear layer of FluxTransformer2DModel is selected"),
        ((*KONTEXT, "--set", "rank=3"), "accumulation 4 does not divide the rank 3"),
        (("--recipe", "embedded", "--data", "{data}", "--set", "targets=x"), "No linear layer of Flux"),
        (("--recipe", "flux_kontext", "--adaptation", "dora"), "no adaptation 'dora'"),
        (("--recipe", "flux_kontext", "--set", "held_out=0"), "held_out is 0; it must be at least 1"),
        (
            ("--recipe", "embedded", "--batch-size", "4", "--set", "noise_levels=3"),
            "The batch size 4 cannot be dealt out to 3 noise levels; take a multiple of 3.",
        ),
        (
            ("--recipe", "embedded", "--batch-size", "4", "--set", "noise_levels=4", "--set", "accumulate=4"),
            "dealt out to 4 noise levels, 4 micro-batches; take a multiple of 16.",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, sentence, models, data, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two = write_data(tmp_path / "two", conventions.musubi_folders, 2)
    places = {"data": data, "two": two, **models}
    given = [argument.format(**places) for argument in arguments] + ["--cache", str(tmp_path)]
    before = contents(tmp_path)
    assert command(lambda: main(given)) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("error: ")
    assert sentence in said.err.splitlines()[-1]
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("transformer", "There is no file"),
        ("transformer/diffusion_pytorch_model.safetensors", "has no weights"),
    ],
)
def test_a_folder_without_a_transformer_is_refused_before_anything_is_encoded(
    missing, sentence, models, data, tmp_path, capfd
):
    folder = shutil.copytree(models["flux_kontext"], tmp_path / "kontext")
    (shutil.rmtree if (folder / missing).is_dir() else Path.unlink)(folder / missing)
    given = ("--recipe", "flux_kontext", "--data", data, "--backbone", folder, "--encoder", "backbone")
    given += ("--device", "cpu", "--cache", tmp_path, "--out", tmp_path / "run")
    assert sentence in refused(main, *given, folder=tmp_path, capfd=capfd)


def test_weights_in_bfloat16_need_a_package_that_is_asked_for_first(tmp_path, capfd, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "torchao" else real(name))
    given = ("--precision", "bf16", "--set", "weights=bf16", "--set", "crops=0", "--out", tmp_path / "run")
    assert "pip install torchao" in refused(main, *given, folder=tmp_path, capfd=capfd)


def test_a_cache_that_is_cleared_while_training_is_a_sentence(data, train, tmp_path, capfd, monkeypatch):
    def cleared(edits, *arguments, encode=EncodedEdits.encode):
        encode(edits, *arguments)
        for path in edits.encodings.cache.folder.glob("??/*.safetensors"):
            path.unlink()

    monkeypatch.setattr(EncodedEdits, "encode", cleared)
    with pytest.raises(AssertionError, match="2"):
        train("flux_kontext", data)
    assert "An encoding that was in the cache is gone" in capfd.readouterr().err
