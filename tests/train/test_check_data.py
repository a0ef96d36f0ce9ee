"""`python -m hywu_core.train --check-data`: what it says of good and of bad samples."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hywu_core.cli import command
from hywu_core.data.paired import PairedDataset
from hywu_core.data.paired.buckets import Buckets
from hywu_core.data.paired.report import make_report
from hywu_core.data.paired.scan import scan
from hywu_core.train.__main__ import main

from ..commands import contents, refused, run
from ..data import paired_writers as writers
from .edited_photos import PHOTOS, photograph, save


def check(*arguments, capfd) -> tuple[int, str, str]:
    capfd.readouterr()
    code = command(lambda: main([str(argument) for argument in ("--check-data", *arguments)]))
    return code, *capfd.readouterr()


def problems(folder, **options) -> dict[str, int]:
    """Kinds of problems that a thorough look finds, with their counts."""
    data = PairedDataset.read(folder)
    report = make_report(data, scan(data, **options), Buckets(64 * 64), False)
    return {problem.kind: problem.found.count for problem in report.problems if problem.found.count}


def test_a_good_data_set_in_a_process_of_its_own(good, tmp_path):
    before = contents(good)
    process = run("hywu_core.train", "--check-data", good, "--json", tmp_path / "r.json", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert contents(good) == before
    assert "errors: none" in process.stdout
    assert "warnings: none" in process.stdout
    assert "4 with 1" in process.stdout
    assert "96 x 64" in process.stdout
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert report["usable"]
    assert report["convention"] == "folders"
    assert report["samples"] == report["samples_per_epoch"] == 4
    assert report["target_sizes"] == [{"width": 96, "height": 64, "images": 4}]
    assert report["target_shapes"] == {"3:2": 4}
    assert sum(bucket["samples"] for bucket in report["buckets"]) == 4
    (layout,) = report["layouts"]
    assert (layout["controls"], layout["samples_per_epoch"]) == (1, 4)
    assert f"{layout['width']} x {layout['height']}, 1 control  4" in process.stdout
    assert not any(problem["count"] for problem in report["problems"].values())


def test_no_model_loads(good, capfd, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_: pytest.fail("a model was made"))
    assert check(good, capfd=capfd)[0] == 0


def test_every_kind_of_warning_is_found(good):
    targets, sources = good / "targets", good / "sources"
    shutil.copy(targets / "cat.png", targets / "cat2.png")  # the same sample again
    shutil.copy(targets / "cat.txt", targets / "cat2.txt")
    shutil.copy(sources / "cat.png", sources / "cat2.png")
    shutil.copy(targets / "coffee.png", targets / "coffee2.png")  # the same target of another source
    save(photograph("mountains"), sources / "coffee2.png")
    save(photograph("pagoda", 2), sources / "pagoda.png", compress_level=0)  # equal pixels, other bytes
    save(photograph("mountains", 2), sources / "mountains.jpg", quality=90)  # the target, compressed
    (sources / "mountains.png").unlink()
    save(photograph("cat"), sources / "stray.png")
    save(photograph("cat", 1), sources / "cat2_1.png")
    assert problems(good) == {
        "same_targets": 2,
        "identical": 1,
        "alike": 1,
        "orphans": 1,
        "empty_captions": 1,
        "variable_controls": 1,
    }
    (sources / "cat2_1.png").unlink()
    found = problems(good)
    assert (found["duplicates"], found["same_targets"]) == (1, 1)


def test_a_quick_look_reads_headers_alone(good):
    path = good / "sources" / "cat.png"
    path.write_bytes(path.read_bytes()[:-2000])  # the header is whole
    assert problems(good, thorough=False) == {}
    assert problems(good) == {"unreadable": 1}


def test_a_slight_edit_is_not_taken_for_none(good):
    pixels = np.array(photograph("cat", 2))
    pixels[:6, :6] = 255 - pixels[:6, :6]
    save(Image.fromarray(pixels), good / "sources" / "cat.png")
    assert problems(good) == {}


@pytest.mark.parametrize("kind", ["turned", "transparent", "palette", "deep", "grey", "cmyk"])
def test_images_of_every_kind_are_read_and_measured_as_they_are_seen(good, kind):
    path = good / "targets" / "cat.png"
    upright = photograph("cat")
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        path.unlink()
        path = path.with_suffix(".jpg")
        save(upright.rotate(90, expand=True), path, exif=exif)
    elif kind == "transparent":
        upright.putalpha(120)
        save(upright, path)
    elif kind == "palette":
        save(upright.quantize(), path)
    elif kind == "deep":
        save(Image.fromarray(np.array(upright.convert("L")).astype(np.uint16) * 257), path)
    elif kind == "cmyk":
        path.unlink()
        path = path.with_suffix(".jpg")
        save(upright.convert("CMYK"), path)
    else:
        save(upright.convert("L"), path)
    data = PairedDataset.load(good)
    sample = next(sample for sample in data if sample.target.path == str(path))
    assert sample.target.size() == (96, 64)
    assert sample.target.tensor().shape == (1, 3, 64, 96)
    assert (sample.target.tensor() - sample.controls[0].tensor()).abs().mean() < 0.35
    assert scan(data).targets == {(96, 64): 4}


def lose_control(folder):
    (folder / "sources" / "cat.png").unlink()


def damage(folder):
    path = folder / "targets" / "cat.png"
    path.write_bytes(path.read_bytes()[:500])


def no_image(folder):
    (folder / "targets" / "cat.png").write_text("no image", encoding="utf-8")


def lose_target(folder):
    rows = [
        {"image": f"targets/{name}.png", "prompt": "x", "edit_image": f"sources/{name}.png"}
        for name in PHOTOS
    ]
    (folder / "metadata.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "targets" / "cat.png").unlink()


REPORTED = {
    lose_control: r"samples lacking a control image: 1 \(such as .*cat.*--allow-missing-controls",
    damage: r"unreadable images: 1 \(such as .*cat\.png is damaged",
    no_image: r"unreadable images: 1 \(such as .*cat\.png is not an image",
    lose_target: r"missing edited images: 1 \(such as .*cat\.png",
}


@pytest.mark.parametrize("breaks", REPORTED, ids=lambda breaks: breaks.__name__)
def test_what_is_wrong_with_single_samples_is_reported_and_refused(breaks, good, tmp_path, capfd):
    breaks(good)
    before = contents(good)
    code, out, err = check(good, "--json", tmp_path / "r.json", capfd=capfd)
    assert code == 2
    assert "errors\n" in out
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert re.search(REPORTED[breaks], err)
    assert contents(good) == before
    assert not json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["usable"]


def test_missing_controls_can_be_allowed(good, capfd):
    lose_control(good)
    code, out, err = check(good, "--allow-missing-controls", capfd=capfd)
    assert (code, err) == (0, "")
    assert "1 with 0, 3 with 1" in out
    assert "samples lacking a control image: 1" in out


@pytest.mark.parametrize(
    ("write", "flags", "told"),
    [
        (writers.musubi_folders, ("--control-folder", "."), "--control-folder"),
        (writers.musubi_jsonl, ("--caption-ending", ".md"), "--caption-ending"),
        (writers.musubi_jsonl, ("--convention", "musubi-tuner", "--target-column", "x"), "--target-column"),
        (writers.diffsynth_csv, ("--split", "test"), "--split"),
        (writers.imagefolder_csv, ("--caption-ending", ".md"), "--caption-ending"),
        (writers.imagefolder_csv, ("--split", "train"), "--split"),
        (writers.ai_toolkit, ("--base", "."), "--base"),
        (writers.simpletuner, ("--control-column", "x"), "--control-column"),
        (writers.plain, ("--prompt-column", "x"), "--prompt-column"),
        (writers.plain, ("--convention", "folders", "--split", "train"), "--split"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_flag_that_a_convention_has_no_use_for_is_refused(write, flags, told, tmp_path, capfd):
    path, _ = write(tmp_path, [writers.Edit("one", 1, "a")])
    said = refused(main, "--check-data", path, *flags, folder=tmp_path, capfd=capfd)
    assert said.startswith(f"{told} says nothing about {path}")
    assert said.endswith("; leave it out.")


def test_a_folder_of_controls_is_refused_beside_another_convention(tmp_path, capfd):
    writers.musubi_folders(tmp_path, [writers.Edit("one", 1, "a")])
    flags = ("--convention", "musubi-tuner", "--control-folder", tmp_path / "sources")
    said = refused(main, "--check-data", tmp_path, *flags, folder=tmp_path, capfd=capfd)
    about = f"{tmp_path / 'dataset.toml'} (musubi-tuner)"
    assert said == f"--control-folder says nothing about {about}; leave it out."


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--json", "r.json"], "--json is about a data set; name that with --data PATH or --check-data"),
        (["--data", "{good}", "--json", "r.json"], "--json is about the report on a data set"),
        (["--control-folder", "x"], "--control-folder is about a data set"),
        (["--check-data", "{good}", "--json", "nowhere/r.json"], "folder nowhere does not exist"),
        (["--check-data", "{good}", "--control-folder", "nowhere"], "--control-folder: nowhere is not there"),
        (["--check-data", "{good}", "--lr", "nan"], "--lr is without effect on the report of --check-data"),
        (["--check-data", "{good}", "--recipe", "embedded"], "--recipe is without effect on the report"),
        (["--check-data", "{good}", "--plan"], "--plan is without effect on the report"),
        (["--check-data", "{good}", "--resolution", "-512"], "resolution is -512; it must be at least 0"),
        (["--recipe", "embedded", "--data", "{good}", "--resolution", "-512"], "resolution is -512; it must"),
        (["--check-data", "{good}", "--resolution", "3"], "An area of 9 pixels holds no square of 16 x 16"),
        (["--check-data", "{good}", "--convention", "diffsynth"], "has no data set of diffsynth"),
        (["--check-data", "{good}/targets/cat.png"], "cat.png is no configuration or metadata"),
    ],
)
def test_arguments_that_cannot_be(arguments, sentence, good, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [argument.replace("{good}", str(good)) for argument in arguments]
    assert sentence in refused(main, *given, folder=tmp_path, capfd=capfd)
