"""`python -m hywu_core.train --check-data`: what it says of good data sets, and of every broken one."""

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
from hywu_core.data.photos import FOLDER
from hywu_core.train.__main__ import main

from ..commands import contents, refused, run

PHOTOS = ("cat", "coffee", "pagoda", "mountains")


def photograph(name: str, turn: int = 0) -> Image.Image:
    with Image.open(FOLDER / f"{name}.jpg") as image:
        return image.convert("RGB").resize((96, 64)).rotate(90 * turn, expand=True)


def save(image: Image.Image, path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def good(tmp_path):
    """Four photographs turned round, with captions."""
    folder = tmp_path / "set"
    for name in PHOTOS:
        save(photograph(name, 2), folder / "targets" / f"{name}.png")
        (folder / "targets" / f"{name}.txt").write_text(f"turn {name} round", encoding="utf-8")
        save(photograph(name), folder / "sources" / f"{name}.png")
    return folder


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


def metadata(name: str, content: str | bytes):
    def broken(folder):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return broken


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def gone(folder):
    shutil.rmtree(folder)


def no_controls(folder):
    shutil.rmtree(folder / "sources")
    for path in (folder / "targets").iterdir():
        path.rename(folder / path.name)
    (folder / "targets").rmdir()


def two_with_captions(folder):
    for name in ("one", "two"):
        shutil.copytree(folder / "targets", folder / name)
    for name in ("targets", "sources"):
        shutil.rmtree(folder / name)


def latin(folder):
    (folder / "targets" / "cat.txt").write_bytes("drehe das Bild für mich".encode("latin-1"))


def two_metadata_files(folder):
    metadata("metadata.json", '[{"image": "a", "prompt": "b"}]')(folder)
    metadata("metadata.csv", "image,prompt\na,b\n")(folder)


def row(**values) -> str:
    return json.dumps(values)


YAML = 'config:\n  process:\n  - datasets:\n    - folder_path: "{folder}/targets"\n      '
TOML = '[[datasets]]\nimage_directory = "targets"\n'
BACKEND = {"id": "e", "instance_data_dir": "targets"}
BROKEN = {
    "nothing there": (gone, r"There is no data set at "),
    "an empty folder": (empty, r"There are no images and no metadata in "),
    "images without controls": (no_controls, r"has images but no controls; .*--control-folder"),
    "two folders with captions": (two_with_captions, r"has the folders one, two; which has the targets"),
    "a caption in another encoding": (latin, r"cat\.txt is not text in UTF-8 \(byte 1\d\)"),
    "two metadata files": (
        two_metadata_files,
        r"in several ways: give the path of one of metadata\.csv \(diffsynth\), metadata\.json \(diffsynth\)",
    ),
    "JSON cut short": (metadata("metadata.json", '[{"image": '), r"not valid JSON at line 1"),
    "JSON that is no list": (
        metadata("metadata.json", '"x"'),
        r"metadata\.json is no configuration or metadata",
    ),
    "a list of other things": (metadata("metadata.json", "[3]"), r"sample 1 must be a dictionary .* is int"),
    "JSON lines cut short": (metadata("metadata.jsonl", '{"image": "a"\n'), r"line 1 is not valid JSON"),
    "no rows": (metadata("metadata.jsonl", "\n"), r"metadata\.jsonl has no samples"),
    "a heading without rows": (metadata("metadata.csv", "image,prompt,edit_image\n"), r"has no samples"),
    "unknown columns": (
        metadata("metadata.csv", "a,b\n1,2\n"),
        r"the columns a, b are of no known convention",
    ),
    "no column of controls": (
        metadata("metadata.csv", "image,prompt\ntargets/cat.png,x\n"),
        r"has no column edit_image or kontext_images; there are: image, prompt\..*--control-column",
    ),
    "a column twice": (
        metadata("metadata.csv", "image,image,prompt\na,b,c\n"),
        r"several columns of one name",
    ),
    "a row too short": (
        metadata("metadata.csv", "image,prompt,edit_image\ntargets/cat.png,x\n"),
        r"line 2 has 2 fields, and the heading has 3",
    ),
    "a row too long": (
        metadata("metadata.csv", "image,prompt,edit_image\ntargets/cat.png,x,y,z\n"),
        r"line 2 has 4 fields, and the heading has 3",
    ),
    "a quotation without an end": (
        metadata("metadata.csv", 'image,prompt,edit_image\ntargets/cat.png,"x,y\n'),
        r"is not valid CSV",
    ),
    "CSV in another encoding": (
        metadata("metadata.csv", "image,prompt,edit_image\na,für,b\n".encode("latin-1")),
        r"metadata\.csv is not text in UTF-8",
    ),
    "a number for a path": (
        metadata("metadata.json", f"[{row(image=5, prompt='x', edit_image='y')}]"),
        r"sample 1: 'image' is 5, not text",
    ),
    "an empty target": (
        metadata("metadata.json", f"[{row(image='', prompt='x', edit_image='y')}]"),
        r"sample 1: 'image' is empty",
    ),
    "an address": (
        metadata("metadata.json", f"[{row(image='https://a.b/c.png', prompt='x', edit_image='y')}]"),
        r"https://a\.b/c\.png is an address, not a file; download",
    ),
    "a row without a caption": (
        metadata("train.jsonl", row(image_path="targets/cat.png", control_path="sources/cat.png")),
        r"line 1: 'caption' is missing; there are: image_path, control_path",
    ),
    "several targets": (
        metadata("train.jsonl", row(image_path_0="a", image_path_1="b", control_path="c", caption="d")),
        r"line 1 has several targets",
    ),
    "TOML cut short": (metadata("set.toml", "[[datasets]\n"), r"set\.toml is not valid TOML"),
    "TOML without data sets": (metadata("set.toml", "[general]\n"), r"names no data sets; each begins with"),
    "TOML of videos alone": (
        metadata("set.toml", '[[datasets]]\nvideo_directory = "v"\n'),
        r"\(musubi-tuner\) has no samples",
    ),
    "layers": (metadata("set.toml", TOML + "multiple_target = true\n"), r"several targets of an image"),
    "a folder that is not there": (
        metadata("set.toml", TOML + 'control_directory = "nowhere"\n'),
        r"data set 1: control_directory: .*nowhere is not there",
    ),
    "repeats of nothing": (metadata("set.toml", TOML + "num_repeats = 0\n"), r"repeats of 0 make no sense"),
    "YAML cut short": (metadata("job.yaml", "config: [\n"), r"job\.yaml is not valid YAML at line 2"),
    "controls at random": (
        metadata("job.yaml", YAML + "control_from_same_folder: true\n"),
        r"control_from_same_folder draws controls at random",
    ),
    "no folder of controls": (
        metadata("job.yaml", YAML + "control_path: 7\n"),
        r"control_path must be a folder or a list of folders, not 7",
    ),
    "a folder as a number": (
        metadata("job.yaml", "config:\n  process:\n  - datasets:\n    - folder_path: 7\n"),
        r"'folder_path' is 7; it must be text",
    ),
    "conditioning data of no such id": (
        metadata("multidatabackend.json", json.dumps([BACKEND | {"conditioning_data": "c"}])),
        r"data set 'e': conditioning_data names 'c'; the enabled data sets are e",
    ),
    "two data sets of one id": (metadata("multidatabackend.json", json.dumps([BACKEND] * 2)), r"one id"),
    "data in the cloud": (
        metadata("multidatabackend.json", json.dumps([BACKEND | {"type": "aws"}])),
        r"data set 'e' is of type 'aws'; only local",
    ),
    "captions in a table": (
        metadata("multidatabackend.json", json.dumps([BACKEND | {"caption_strategy": "parquet"}])),
        r"caption_strategy 'parquet' cannot be read",
    ),
    "controls made while training": (
        metadata("multidatabackend.json", json.dumps([BACKEND | {"conditioning": [{"type": "canny"}]}])),
        r"its controls are made during training",
    ),
    "no data set of images": (
        metadata("multidatabackend.json", json.dumps([{"id": "t", "dataset_type": "text_embeds"}])),
        r"has no data set of images",
    ),
    "splits without a name": (metadata("dataset_dict.json", "{}"), r"names no splits"),
    "an Arrow file cut short": (
        lambda folder: (
            metadata("state.json", '{"_data_files": [{"filename": "a.arrow"}]}')(folder),
            metadata("a.arrow", b"ARROW1")(folder),
        ),
        r"a\.arrow is not a complete arrow file|pip install pyarrow",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_data_sets(name, good, tmp_path, capfd, monkeypatch):
    breaks, sentence = BROKEN[name]
    monkeypatch.chdir(tmp_path)
    breaks(good)
    if (good / "job.yaml").is_file():
        content = (good / "job.yaml").read_text(encoding="utf-8")
        (good / "job.yaml").write_text(content.replace("{folder}", good.as_posix()), encoding="utf-8")
    said = refused(main, "--check-data", good, folder=tmp_path, capfd=capfd)
    assert re.search(sentence, said), said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--json", "r.json"], "--json is about a data set; name it with --check-data"),
        (["--control-folder", "x"], "--control-folder is about a data set"),
        (["--check-data", "{good}", "--json", "nowhere/r.json"], "folder nowhere does not exist"),
        (["--check-data", "{good}", "--control-folder", "nowhere"], "--control-folder: nowhere is not there"),
        (["--check-data", "{good}", "--resolution", "3"], "An area of 9 pixels holds no square of 16 x 16"),
        (["--check-data", "{good}", "--convention", "diffsynth"], "has no data set of diffsynth"),
        (["--check-data", "{good}/targets/cat.png"], "cat.png is no configuration or metadata"),
    ],
)
def test_arguments_that_cannot_be(arguments, sentence, good, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [argument.replace("{good}", str(good)) for argument in arguments]
    assert sentence in refused(main, *given, folder=tmp_path, capfd=capfd)
