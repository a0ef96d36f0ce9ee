"""The same samples written in every convention, as its users lay them out; images are read by path alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hywu_core.data.paired import Sample

ENDING = ".png"


class Edit(NamedTuple):
    """What is to be read back; `name` without ending, may have folders."""

    name: str
    controls: int
    prompt: str


def normal(samples: Sequence[Sample], folder: Path) -> list[tuple[str, list[str], str]]:
    """Samples as relative paths, in a fixed order."""
    return sorted(
        (_relative(s.target, folder), [_relative(c, folder) for c in s.controls], s.prompt) for s in samples
    )


def _relative(picture, folder: Path) -> str:
    return Path(picture.path).relative_to(folder).as_posix() + (
        f" {picture.item}" if picture.item > 0 else ""
    )


def image(path: Path) -> str:
    """A file that stands for an image; returns its path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"image")
    return str(path)


def text(path: Path, content: str) -> Path:
    """A text file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")
    return path


def in_folders(root: Path, edits: Sequence[Edit]) -> list[tuple[str, list[str], str]]:
    """targets/NAME.png with captions, control_N/NAME.png; all with as many controls as the first."""
    count = edits[0].controls
    for edit in edits:
        image(root / "targets" / f"{edit.name}{ENDING}")
        text(root / "targets" / f"{edit.name}.txt", edit.prompt)
        for number in range(count):
            image(root / f"control_{number}" / f"{edit.name}{ENDING}")
    return sorted(
        (f"targets/{e.name}{ENDING}", [f"control_{n}/{e.name}{ENDING}" for n in range(count)], e.prompt)
        for e in edits
    )


def plain(root: Path, edits: Sequence[Edit]):
    """No configuration at all."""
    return root, in_folders(root, edits)


def ai_toolkit(root: Path, edits: Sequence[Edit]):
    """A job in YAML; JSON is YAML too, which saves quoting here."""
    expected = in_folders(root, edits)
    controls = [str(root / f"control_{number}") for number in range(edits[0].controls)]
    dataset = {"folder_path": str(root / "targets"), "control_path": controls, "caption_ext": "txt"}
    job = {"job": "extension", "config": {"name": "x", "process": [{"type": "t", "datasets": [dataset]}]}}
    return text(root / "job.yaml", json.dumps(job)), expected


def simpletuner(root: Path, edits: Sequence[Edit]):
    """One conditioning data set for every control."""
    expected = in_folders(root, edits)
    ids = [f"control-{number}" for number in range(edits[0].controls)]
    backends = [
        {
            "id": "edits",
            "type": "local",
            "instance_data_dir": str(root / "targets"),
            "caption_strategy": "textfile",
            "conditioning_data": ids,
        },
        *(
            {
                "id": name,
                "type": "local",
                "dataset_type": "conditioning",
                "conditioning_type": "reference_strict",
                "instance_data_dir": str(root / name.replace("-", "_")),
                "caption_strategy": None,
            }
            for name in ids
        ),
        {"id": "text", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache"},
    ]
    return text(root / "multidatabackend.json", json.dumps(backends)).parent, expected


def musubi_folders(root: Path, edits: Sequence[Edit]):
    """stem_0, stem_1, ... in one control folder; a single control has the name of its target."""
    expected = []
    for edit in edits:
        image(root / "images" / f"{edit.name}{ENDING}")
        text(root / "images" / f"{edit.name}.txt", edit.prompt)
        names = [edit.name] if edit.controls == 1 else [f"{edit.name}_{n}" for n in range(edit.controls)]
        controls = [f"sources/{name}{ENDING}" for name in names]
        for control in controls:
            image(root / control)
        expected.append((f"images/{edit.name}{ENDING}", controls, edit.prompt))
    lines = (
        "[general]",
        "resolution = [960, 544]",
        'caption_extension = ".txt"',
        "[[datasets]]",
        f"image_directory = {json.dumps(str(root / 'images'))}",
        f"control_directory = {json.dumps(str(root / 'sources'))}",
    )
    return text(root / "dataset.toml", "\n".join(lines)), sorted(expected)


def _numbered(root: Path, edits: Sequence[Edit]) -> list[tuple[str, list[str], str]]:
    """Images of rows of metadata, anywhere below the root."""
    rows = []
    for edit in edits:
        controls = [f"before/{edit.name}/{number}{ENDING}" for number in range(edit.controls)]
        for path in (f"after/{edit.name}{ENDING}", *controls):
            image(root / path)
        rows.append((f"after/{edit.name}{ENDING}", controls, edit.prompt))
    return rows


def musubi_jsonl(root: Path, edits: Sequence[Edit]):
    """control_path for one control, control_path_0, ... for several; absolute paths."""
    rows = _numbered(root, edits)
    lines = []
    for target, controls, prompt in rows:
        names = (
            ["control_path"] if len(controls) == 1 else [f"control_path_{n}" for n in range(len(controls))]
        )
        paths = {name: str(root / path) for name, path in zip(names, controls, strict=True)}
        lines.append(json.dumps({"image_path": str(root / target), "caption": prompt} | paths))
    return text(root / "train.jsonl", "\n".join(lines)), sorted(rows)


def diffsynth_json(root: Path, edits: Sequence[Edit]):
    """A list of controls, or one alone as text."""
    rows = _numbered(root, edits)
    content = [
        {"image": target, "prompt": prompt, "edit_image": controls[0] if len(controls) == 1 else controls}
        for target, controls, prompt in rows
    ]
    return text(root / "metadata.json", json.dumps(content)).parent, sorted(rows)


def diffsynth_csv(root: Path, edits: Sequence[Edit]):
    """CSV holds one control."""
    rows = _numbered(root, [edit._replace(controls=1) for edit in edits])
    _csv(root / "metadata.csv", ["image", "prompt", "kontext_images"], ([t, p, c[0]] for t, c, p in rows))
    return root, sorted(rows)


def imagefolder_csv(root: Path, edits: Sequence[Edit]):
    """Hugging Face: *_file_name columns; the control columns of a row may be fewer."""
    rows = _numbered(root, edits)
    most = max(edit.controls for edit in edits)
    names = [f"control_image_{number}_file_name" for number in range(most)]
    table = ([t, *c, *[""] * (most - len(c)), p] for t, c, p in rows)
    _csv(root / "metadata.csv", ["edited_image_file_name", *names, "edit_prompt"], table)
    return root, sorted(rows)


def imagefolder_jsonl(root: Path, edits: Sequence[Edit]):
    """Hugging Face: a list of controls in one column."""
    rows = _numbered(root, edits)
    lines = [json.dumps({"file_name": t, "input_images_file_names": c, "text": p}) for t, c, p in rows]
    text(root / "train" / "metadata.jsonl", "\n".join(lines))
    for path in root.iterdir():
        if path.name != "train":
            path.rename(root / "train" / path.name)
    return root, sorted((f"train/{t}", [f"train/{path}" for path in c], p) for t, c, p in rows)


def _csv(path: Path, names: list[str], rows) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)


SAME_COUNT = (plain, ai_toolkit, simpletuner)
ANY_COUNT = (musubi_folders, musubi_jsonl, diffsynth_json, diffsynth_csv, imagefolder_csv, imagefolder_jsonl)
