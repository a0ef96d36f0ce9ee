"""Hugging Face data sets: image folders with metadata, parquet files, and what `save_to_disk` writes.

Columns are found by the names people use, or named by the user, as diffusers' training scripts have it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import HywuError
from . import tables
from .collect import Collector
from .columns import Columns, choose
from .folders import locate, only_dictionaries
from .metadata import Row, read_json, read_rows, text_of, texts_of
from .options import Options
from .pictures import Picture

USES = ("base", "target_column", "control_columns", "prompt_column")  # options
_FILE = re.compile(
    r"(?:(.+)_)?file_names?"
)  # file_name is column image, input_image_file_name is input_image
_SPLIT = re.compile(
    r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?"  # older `datasets` put a hash at the end
    r"|(train(?:ing)?|val(?:id(?:ation)?)?|dev|eval|test(?:ing)?)",
    re.IGNORECASE,
)
_FIRST = ("train", "training")  # of several splits, the one to train on


def recognise(names: Sequence[str]) -> bool:
    """Whether columns of metadata are those of an image folder."""
    return any(_FILE.fullmatch(name) for name in names)


def read_metadata(path: Path, options: Options, into: Collector) -> None:
    """Fill `into` from metadata.csv or .jsonl of an image folder."""
    columns, stored, kinds = None, {}, {}  # the names and kinds of all columns seen so far
    for place, row in read_rows(path):
        new = [name for name in row if _column(name) not in kinds]  # JSON leaves out what a row has not
        if columns is None or new:
            stored |= {_column(name): name for name in new}
            kinds |= {_column(name): _kind(row[name]) for name in new}
            columns = choose(kinds, options, place)
        _add_row(row, stored, columns, place, str(options.base or path.parent), into)


def read_tables(paths: Sequence[Path], options: Options, into: Collector) -> None:
    """Fill `into` from parquet or Arrow files, in order."""
    for path in paths:
        kinds, folder = tables.columns(path), str(options.base or path.parent)
        stored = {_column(name): name for name in kinds}
        columns = choose({_column(name): kind for name, kind in kinds.items()}, options, str(path))
        images = [stored[name] for name in (columns.target, *columns.controls)]
        for number, row in enumerate(tables.read_rows(path, [stored[columns.prompt]], images)):
            place = f"{path}, row {number}"
            targets, *controls = (_pictures(row, name, path, number, folder) for name in images)
            _check_one(targets, columns, place)
            prompts = texts_of(row, stored[columns.prompt], place)
            into.add(targets[0], [picture for some in controls for picture in some], prompts)


def find_tables(folder: Path, options: Options) -> list[Path]:
    """Files of a folder that `save_to_disk` wrote, or that holds parquet files; none if it is neither.

    Of several splits the one called train is taken, unless the options name another. HywuError where they
    name one and there are none.
    """
    if (folder / "dataset_dict.json").is_file():
        content = read_json(folder / "dataset_dict.json")
        names = content.get("splits") if isinstance(content, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise HywuError(f"{folder / 'dataset_dict.json'} names no splits.")
        return find_tables(folder / _choose_split(names, options, folder), replace(options, split=None))
    if (folder / "state.json").is_file():
        content = read_json(folder / "state.json")
        files = content.get("_data_files") if isinstance(content, dict) else None
        entries = only_dictionaries(files, f"{folder / 'state.json'}: _data_files")
        _refuse_split(options, folder)
        return [folder / text_of(entry, "filename", str(folder / "state.json")) for entry in entries]
    found = _parquet(folder) or _parquet(folder / "data")
    splits = [_split_of(path) for path in found]
    if any(splits):
        split = _choose_split(sorted({name for name in splits if name}), options, folder)
        found = [path for path, name in zip(found, splits, strict=True) if name == split]
    elif found:
        _refuse_split(options, folder)
    return found


def _split_of(path: Path) -> str | None:
    """Which split a table is, or is a part of, by its name."""
    match = _SPLIT.fullmatch(path.stem)
    return (match[1] or match[2]) if match else None


def _parquet(folder: Path) -> list[Path]:
    """The parquet files in a folder, but for ._train.parquet, which macOS leaves on foreign disks."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in files if path.suffix.lower() == ".parquet" and path.name[0] != ".")


def _refuse_split(options: Options, folder: Path) -> None:
    if options.split:
        raise HywuError(f"{folder} has no splits; leave out --split {options.split}.")


def _choose_split(names: Sequence[str], options: Options, folder: Path) -> str:
    wanted = [options.split] if options.split else [*_FIRST, *(names if len(names) == 1 else ())]
    for name in wanted:
        if name in names:
            return name
    said = f"no split '{options.split}'" if options.split else "several splits"
    raise HywuError(f"{folder} has {said}; choose one with --split: {', '.join(names)}.")


def _column(name: str) -> str:
    """What `datasets` calls a column once it is loaded: columns of file names become columns of images."""
    match = _FILE.fullmatch(name)
    return (match[1] or "image") if match else name


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "texts"
    return "text" if isinstance(value, str) or value is None else "other"


def _add_row(
    row: Row, stored: Mapping[str, str], columns: Columns, place: str, folder: str, into: Collector
) -> None:
    def pictures(column: str) -> list[Picture]:
        return [Picture(locate(text, [folder])) for text in texts_of(row, stored[column], place)]

    targets = pictures(columns.target)
    _check_one(targets, columns, place)
    controls = [picture for name in columns.controls if stored[name] in row for picture in pictures(name)]
    into.add(targets[0], controls, texts_of(row, stored[columns.prompt], place))


def _check_one(targets: Sequence[Picture], columns: Columns, place: str) -> None:
    if len(targets) != 1:
        raise HywuError(f"{place}: column '{columns.target}' has {len(targets)} images, not one.")


def _pictures(row: Mapping[str, Any], column: str, path: Path, number: int, folder: str) -> list[Picture]:
    """The images of a cell: files that are named, below `folder`, or the cell itself where it holds them."""
    value = row[column]
    cells = value if isinstance(value, list) else [value]
    return [
        Picture(locate(cell, [folder]))
        if isinstance(cell, str)
        else Picture(str(path), number, column, item if isinstance(value, list) else -1)
        for item, cell in enumerate(cells)
        if cell
    ]
