"""`python -m hywu_core.train` as people use it: run, interrupt, resume, use the result, get it wrong."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hywu_core import ParameterGenerator, load_generator
from hywu_core.cli import command
from hywu_core.data.photos import FOLDER
from hywu_core.edit import main as edit
from hywu_core.embedded import GENERATOR
from hywu_core.errors import HywuError
from hywu_core.generator import save_generator
from hywu_core.lora import LoraSpec
from hywu_core.train import recipes
from hywu_core.train.__main__ import _check_same, main, parser, plan
from hywu_core.train.checkpoint import TrainState, read_checkpoint
from hywu_core.train.checkpoint_files import MARKER, newest
from hywu_core.train.hywu import HywuTask, HywuTrainingConfig
from hywu_core.train.processes import ALONE
from hywu_core.train.warm_start import lean_back, warm_start
from hywu_core.train.world import WorldConfig

from ..commands import contents, refused, run, start

MODULE = "hywu_core.train"
STEPS = 4
SMALL = ("--set", "size=64", "--set", "crops=2", "--set", "photos=1", "--batch-size", 2)
RESULTS = {
    HywuTask.file_name,
    "run.json",
    "loss.png",
    "before_after.png",
    "result.txt",
    "metrics.jsonl",
}


def results(out: Path) -> set[str]:
    """What a run has left beside its checkpoint and what TensorBoard, where it is installed, reads."""
    names = {path.name for path in out.iterdir()} - {"tensorboard"}
    assert newest(out).name in names
    return names - {newest(out).name}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """The demonstration, made small, in a process of its own; and its run folder."""
    folder = tmp_path_factory.mktemp("train")
    return run(MODULE, *SMALL, "--steps", STEPS, folder=folder), folder / "runs" / "embedded_demo"


def test_it_ends_with_a_sentence_in_numbers(finished):
    process, out = finished
    assert process.returncode == 0, process.stderr
    sentence = process.stdout.splitlines()[-1]
    assert re.search(r"reaches -?[\d.]+ dB .* [-+][\d.]+ dB over the frozen base\.$", sentence)
    assert (out / "result.txt").read_text(encoding="utf-8") == sentence + "\n"


def test_progress_has_an_estimate_of_the_time_left(finished):
    # 50%|#####     | 2/4 [00:01<00:01,  1.94step/s, loss 0.8742]
    assert re.search(r"embedded_demo: .* \d+/4 \[\d\d:\d\d<\d\d:\d\d, .*loss \d", finished[0].stderr)


def test_it_leaves_a_checkpoint_a_generator_a_curve_and_a_sheet(finished):
    out = finished[1]
    assert results(out) == RESULTS
    for name in ("loss.png", "before_after.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 200
            assert len(image.convert("L").getcolors()) > 10  # something is drawn
    described = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert described["config"]["steps"] == STEPS
    assert described["settings"]["size"] == 64


def test_edit_accepts_the_generator(finished, tmp_path):
    arguments = [str(FOLDER / "cat.jpg"), "darker", "-o", str(tmp_path / "out.png"), "--steps", "1"]
    assert command(lambda: edit([*arguments, "--generator", str(finished[1] / HywuTask.file_name)])) == 0
    assert (tmp_path / "out.png").is_file()


def test_interrupted_and_resumed_it_comes_to_the_same_bits(finished, tmp_path, monkeypatch, capfd):
    def pressed(task, size, generator, index, batch=HywuTask.batch):
        pressed.steps += 1
        if pressed.steps == 2:
            signal.raise_signal(signal.SIGINT)
        return batch(task, size, generator, index)

    pressed.steps = 0
    monkeypatch.setattr(HywuTask, "batch", pressed)
    out = tmp_path / "a run of mine"
    arguments = [str(argument) for argument in (*SMALL, "--steps", STEPS, "--out", out)]
    assert command(lambda: main(arguments)) == 130
    mark = '"' if sys.platform == "win32" else "'"
    assert capfd.readouterr().err.splitlines()[-1].endswith(f"hywu_core.train --resume {mark}{out}{mark}")
    assert results(out) == {"run.json", "metrics.jsonl"}
    assert command(lambda: main(["--resume", str(out)])) == 0
    assert pressed.steps == STEPS
    whole, resumed = read_checkpoint(finished[1])[0], read_checkpoint(out)[0]
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    assert (out / "result.txt").read_bytes() == (finished[1] / "result.txt").read_bytes()


def test_a_device_without_memory_left_is_a_sentence_with_advice(tmp_path, monkeypatch, capfd):
    def full(*_):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of "
            "which 1.20 GiB is free. Including non-PyTorch memory, this process has 77.90 GiB memory in use."
        )

    monkeypatch.setattr(HywuTask, "loss", full)
    arguments = [str(argument) for argument in (*SMALL, "--steps", 1, "--out", tmp_path / "run")]
    assert command(lambda: main(arguments)) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert "allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.20 GiB is free. T" in said
    assert all(word in said for word in ("--batch-size", "accumulate", "--recompute", "--quantize"))


def wait_for(pattern: str, process: subprocess.Popen) -> str:
    """What the process has said on standard error up to the pattern."""
    said = ""
    while not re.search(pattern, said):
        letter = process.stderr.read(1)
        assert letter, f"it ended without {pattern}: {said}"
        said += letter
    return said


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to one process alone")
def test_ctrl_c_in_training_can_be_resumed(tmp_path):
    process = start(MODULE, *SMALL, "--steps", 8, "--out", "run", folder=tmp_path)
    wait_for(r"embedded_demo: .* [1-9]\d*/8 ", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "Stopped. Continue with: python -m hywu_core.train --resume run"
    assert 1 <= len(read_checkpoint(tmp_path / "run")[0]["losses"]) <= 8
    resumed = run(MODULE, "--resume", "run", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert results(tmp_path / "run") == RESULTS


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to one process alone")
def test_ctrl_c_while_the_data_is_prepared_leaves_nothing(tmp_path):
    process = start(MODULE, "--set", "crops=100000", "--out", "run", folder=tmp_path)
    wait_for(r"encoding exact edits: .*\d+/100000", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "Stopped."
    assert contents(tmp_path) == {}


def save_run(folder: Path, done: int, steps: int, recipe: str = "embedded_demo", **settings: object) -> Path:
    """A run that got as far as `done` steps, with a toy's weights; returns its checkpoint."""
    config, settings = recipes.configure(recipes.recipe(recipe), {"steps": steps, **settings})
    described = {"recipe": recipe, "config": config.to_dict(), "settings": settings}
    module = torch.nn.Linear(2, 2)
    folder.mkdir()
    state = TrainState(module, torch.optim.AdamW(module.parameters()), torch.Generator(), [1.0] * done)
    state.save(folder, described)
    state.settle()
    return newest(folder)


def change(path: Path, **changed: object) -> None:
    """Other words in what a checkpoint says of itself."""
    described = json.loads((path / MARKER).read_text(encoding="utf-8"))
    (path / MARKER).write_text(json.dumps(described | changed), encoding="utf-8")


@pytest.fixture(scope="module")
def wrong_files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "notes.txt").write_text("Buy milk.")
    (folder / "empty").mkdir()
    save_run(folder / "unfinished", 3, 6)
    (shard,) = save_run(folder / "truncated", 3, 6).glob("*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    (shard,) = save_run(folder / "partial", 3, 6).glob("*.safetensors")
    shard.unlink()
    (folder / "foreign" / "checkpoint-3").mkdir(parents=True)
    save_file({"x": torch.zeros(2)}, folder / "foreign" / "checkpoint-3" / "model.safetensors")
    change(save_run(folder / "other", 3, 6), kind="another trainer's")
    change(save_run(folder / "nonsense", 3, 6), run=[])
    (save_run(folder / "scrambled", 3, 6) / MARKER).write_text("{")
    shipped = load_generator(GENERATOR)
    smaller = LoraSpec(shipped.spec.bands, rank=4, alpha=4)
    save_generator(
        folder / "rank4.safetensors",
        ParameterGenerator(shipped.config, smaller, shipped.layout),
        shipped.encoder_info,
        shipped.backbone_info,
    )
    save_generator(folder / "qwen.safetensors", shipped, backbone={"kind": "qwen_image_edit", "id": "Qwen"})
    return folder


GENERATOR_FROM = ("--recipe", "embedded_generator", "--device", "cpu", "--set")
WRONG = {
    "no such recipe": (("--recipe", "alchemy"), "'alchemy'; choose from embedded_demo"),
    "no such setting": (("--set", "colour=red"), "no setting 'colour'"),
    "a setting without a value": (("--set", "crops"), "NAME=VALUE"),
    "a setting of another type": (("--set", "crops=many"), "crops is 'many'"),
    "no crops": (("--set", "crops=0"), "crops is 0"),
    "a size that does not divide": (("--set", "size=70"), r"\(70, 70\).*16"),
    "no photographs": (("--set", "photos=0"), "photos is 0"),
    "a rate that is no number": (("--lr", "nan"), "lr is nan"),
    "no steps": (("--steps", "0"), "steps is 0"),
    "steps in words": (("--steps", "many"), "steps is 'many'"),
    "a negative seed": (("--seed", "-1"), "seed is -1"),
    "no such device": (("--device", "abacus"), "'abacus' is not available"),
    "a run folder that is a file": (("--out", "notes.txt"), "notes.txt is no folder"),
    "a run folder inside a file": (("--out", "notes.txt/run"), "notes.txt is no folder"),
    "a run that is not finished": (("--out", "unfinished"), "step 3 of 6.*--resume unfinished"),
    "nothing to resume": (("--resume", "empty"), "nothing to resume in empty"),
    "no folder to resume": (("--resume", "nowhere"), "nothing to resume in nowhere"),
    "a truncated checkpoint": (("--resume", "truncated"), r"not a complete checkpoint.*bytes instead of"),
    "a checkpoint without a shard": (("--resume", "partial"), r"not a complete checkpoint.*is missing"),
    "a foreign checkpoint": (("--resume", "foreign"), "checkpoint-3 is not a checkpoint of this trainer"),
    "another trainer's checkpoint": (("--resume", "other"), "of the kind 'another trainer's'"),
    "a checkpoint without its run": (("--resume", "nonsense"), "is damaged"),
    "a checkpoint with scrambled words": (("--resume", "scrambled"), "is damaged"),
    "processes that are not there": (("--replicate", "2"), "replicate 2 .* cannot be 1 process;"),
    "an arrangement of nothing": (("--sequence", "0"), "sequence is 0"),
    "a batch of one and a half edits": (("--batch-size", "3"), "dealt out to 2 noise levels; take a multi"),
    "no noise levels": (("--set", "noise_levels=0"), "noise_levels is 0; it must be at least 1"),
    "another recipe": (
        ("--resume", "unfinished", "--recipe", "embedded_text"),
        "'embedded_demo', not of 'emb",
    ),
    "another setting": (("--resume", "unfinished", "--lr", "1"), "keeps its settings; leave out lr"),
    "another folder": (("--resume", "unfinished", "--out", "empty"), "leave out --out"),
    "no generator to start from": ((*GENERATOR_FROM, "init=none.safetensors"), r"none\.safetensors"),
    "a text to start from": ((*GENERATOR_FROM, "init=notes.txt"), r"notes\.txt"),
    "another size to start from": (
        (*GENERATOR_FROM, "init=rank4.safetensors"),
        "its rank is 4, not 8",
    ),
    "another backbone to start from": ((*GENERATOR_FROM, "init=qwen.safetensors"), "'qwen_image_edit'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence_and_leaves_nothing(wrong_files, monkeypatch, capfd, case):
    arguments, named = WRONG[case]
    monkeypatch.chdir(wrong_files)
    assert re.search(named, refused(main, *arguments, folder=wrong_files, capfd=capfd))


@pytest.fixture
def no_data(monkeypatch):
    """Building a task without the minutes of encoding its data."""

    def world(operations, *_):
        return SimpleNamespace(pool=SimpleNamespace(operations=operations))

    monkeypatch.setattr("hywu_core.train.hywu.EmbeddedWorld", world)


def planned(*arguments):
    return plan(parser().parse_args([*arguments]))


def test_the_backbones_own_text_is_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "backbone").mkdir()
    given = ("--recipe", "qwen_image_edit", "--backbone", "backbone", "--encoder", "backbone")
    settings = planned(*given).settings
    assert (settings["backbone"], settings["encoder"]) == (str(tmp_path / "backbone"), "backbone")


def test_the_shipped_generator_can_be_trained_on_by_its_recipe(no_data, tmp_path):
    arguments = (*GENERATOR_FROM, f"init={GENERATOR}", "--out", str(tmp_path))
    weights = planned(*arguments).build(ALONE).module.state_dict()
    shipped = load_generator(GENERATOR).state_dict()
    assert weights.keys() == shipped.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in shipped.items())


def test_a_resumed_run_needs_no_file_that_it_once_started_from(no_data, tmp_path):
    save_run(tmp_path / "run", 1, 6, "embedded_generator", init="gone.safetensors")
    resumed = planned("--resume", str(tmp_path / "run"))
    resumed.build(ALONE)
    assert resumed.describe()["settings"]["init"] == "gone.safetensors"


def test_a_share_is_kept_of_the_same_generator_however_often_a_run_is_finished(no_data, tmp_path):
    start = shutil.copy(GENERATOR, tmp_path / "start.safetensors")
    given = (*GENERATOR_FROM, f"init={start}", "--set", "keep=0.25", "--out", str(tmp_path / "run"))
    task = planned(*given).build(ALONE)
    began = task.about()
    shipped = load_generator(GENERATOR)
    with torch.no_grad():
        shipped.load_state_dict({name: tensor + 1 for name, tensor in shipped.state_dict().items()})
    save_generator(start, shipped, shipped.encoder_info, shipped.backbone_info)  # by the run itself perhaps
    assert task.about() == began
    with pytest.raises(HywuError, match=r"The generator that the run keeps a share of has changed"):
        _check_same(tmp_path / "run", began, planned(*given).build(ALONE).about())


def test_a_start_of_another_size_names_both_and_changes_nothing(wrong_files):
    shipped = load_generator(GENERATOR)
    module = ParameterGenerator(shipped.config, shipped.spec, shipped.layout)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(HywuError, match=r"its rank is 4, not 8; its alpha is 4.*, not 8"):
        warm_start(module, wrong_files / "rank4.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_some_of_the_weights_that_a_run_starts_from_can_be_kept():
    shipped = load_generator(GENERATOR)
    module = ParameterGenerator(shipped.config, shipped.spec, shipped.layout)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    lean_back(module, shipped.state_dict(), 0.25)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * before[name] + 0.25 * shipped.state_dict()[name])
    with pytest.raises(HywuError, match=r"keep is 0\.3, a share of what is started from; name that by init"):
        HywuTask("x", HywuTrainingConfig(keep=0.3), WorldConfig(crops=1), torch.device("cpu"), 0)
