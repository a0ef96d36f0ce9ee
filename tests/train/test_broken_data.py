"""Every way in which a data set can be broken is one sentence and exit code 2, and nothing is written."""

import json
import re
import shutil

import pytest

from hywu_core.train.__main__ import main

from ..commands import refused


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
    "a day that is none": (metadata("job.yaml", YAML + "on: 2024-99-99\n"), r"not valid YAML: month must be"),
    "frames without a number": (
        metadata("job.yaml", YAML + "num_frames: auto\n"),
        r"num_frames is 'auto'; it must be a whole number",
    ),
    "frames as a list": (metadata("job.yaml", YAML + "num_frames: [1]\n"), r"num_frames is \[1\]; it must"),
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
    "conditioning data as a dictionary": (
        metadata("multidatabackend.json", json.dumps([BACKEND | {"conditioning_data": {"id": "c"}}])),
        r"data set 'e': conditioning_data names \{'id': 'c'\}; the enabled data sets are e",
    ),
    "conditioning data as dictionaries": (
        metadata("multidatabackend.json", json.dumps([BACKEND | {"conditioning_data": [{"id": "c"}]}])),
        r"data set 'e': conditioning_data names \{'id': 'c'\}; the enabled data sets are e",
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
