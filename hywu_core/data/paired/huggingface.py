"""Hugging Face data sets: image folders with metadata, parquet files, and what `save_to_disk` writes.

Columns are found by the names people use, or named by the user, as diffusers' training scripts have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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

_FILE = re.compile(
    r"(?:(.+)_)?file_names?"
)  # file_name is column image, input_image_file_name is input_image
_SPLIT = re.compile(r"(.+?)-\d{5}-of-\d{5}")
_FIRST = ("train", "training")  # of several splits, the one to train on


def recognise(names: Sequence[str]) -> bool:
    """Whether columns of metadata are those of an image folder."""
    return any(_FILE.fullmatch(name) for name in names)


def read_metadata(path: Path, options: Options, into: Collector) -> None:
    """Fill `into` from metadata.csv or .jsonl of an image folder."""
    columns, files, kinds = None, {}, {}
    for place, row in read_rows(path):
        new = [name for name in row if (_column(name) if _FILE.fullmatch(name) else name) not in kinds]
        if columns is None or new:
            files |= {_column(name): name for name in new if _FILE.fullmatch(name)}
            kinds |= {_column(name) if _FILE.fullmatch(name) else name: _kind(row[name]) for name in new}
            columns = choose(kinds, options, place)
        _add_row(row, files, columns, place, path.parent, into)


def read_tables(paths: Sequence[Path], options: Options, into: Collector) -> None:
    """Fill `into` from parquet or Arrow files, in order."""
    for path in paths:
        kinds = tables.columns(path)
        columns = choose(_without_files(kinds), options, str(path))
        texts, images = (columns.prompt,), (columns.target, *columns.controls)
        for number, row in enumerate(
            tables.read_rows(path, texts, [_stored(name, kinds) for name in images])
        ):
            place = f"{path}, row {number}"
            pictures = [_pictures(row, name, path, number, kinds) for name in images]
            if len(pictures[0]) != 1:
                raise HywuError(f"{place}: column '{columns.target}' has {len(pictures[0])} images, not one.")
            controls = [picture for some in pictures[1:] for picture in some]
            into.add(pictures[0][0], controls, texts_of(row, columns.prompt, place))


def find_tables(folder: Path, options: Options) -> list[Path]:
    """Files of a folder that `save_to_disk` wrote, or that holds parquet files; none if it is neither.

    Of several splits the one called train is taken, unless the options name another.
    """
    if (folder / "dataset_dict.json").is_file():
        content = read_json(folder / "dataset_dict.json")
        names = content.get("splits") if isinstance(content, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise HywuError(f"{folder / 'dataset_dict.json'} names no splits.")
        return find_tables(folder / _choose_split(names, options, folder), options)
    if (folder / "state.json").is_file():
        content = read_json(folder / "state.json")
        files = content.get("_data_files") if isinstance(content, dict) else None
        entries = only_dictionaries(files, f"{folder / 'state.json'}: _data_files")
        return [folder / text_of(entry, "filename", str(folder / "state.json")) for entry in entries]
    found = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    splits = {match[1] for path in found if (match := _SPLIT.fullmatch(path.stem))}
    if splits:
        split = _choose_split(sorted(splits), options, folder)
        found = [path for path in found if (match := _SPLIT.fullmatch(path.stem)) and match[1] == split]
    return found


def _choose_split(names: Sequence[str], options: Options, folder: Path) -> str:
    wanted = [options.split] if options.split else [*_FIRST, *(names if len(names) == 1 else ())]
    for name in wanted:
        if name in names:
            return name
    said = f"no split '{options.split}'" if options.split else "several splits"
    raise HywuError(f"{folder} has {said}; choose one with --split: {', '.join(names)}.")


def _column(name: str) -> str:
    match = _FILE.fullmatch(name)
    return (match and match[1]) or "image"


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "texts"
    return "text" if isinstance(value, str) or value is None else "other"


def _add_row(
    row: Row, files: Mapping[str, str], columns: Columns, place: str, folder: Path, into: Collector
) -> None:
    def paths(column: str) -> Iterator[Picture]:
        for text in texts_of(row, files.get(column, column), place):
            yield Picture(locate(text, [str(folder)]))

    targets = list(paths(columns.target))
    if len(targets) != 1:
        raise HywuError(f"{place}: column '{columns.target}' names {len(targets)} images, not one.")
    there = [name for name in columns.controls if files.get(name, name) in row]  # JSON leaves nulls out
    controls = [picture for name in there for picture in paths(name)]
    into.add(targets[0], controls, texts_of(row, columns.prompt, place))


def _without_files(kinds: Mapping[str, str]) -> dict[str, str]:
    """Kinds of a table's columns, where metadata.parquet names files as metadata.csv does."""
    return {_column(name) if _FILE.fullmatch(name) else name: kind for name, kind in kinds.items()}


def _stored(name: str, kinds: Mapping[str, str]) -> str:
    """The column of the table behind the name of an image column."""
    return name if name in kinds else next(stored for stored in kinds if _column_or_none(stored) == name)


def _column_or_none(name: str) -> str | None:
    return _column(name) if _FILE.fullmatch(name) else None


def _pictures(
    row: Mapping[str, Any], name: str, path: Path, number: int, kinds: Mapping[str, str]
) -> list[Picture]:
    """The images of a cell: files that are named, or cells that hold them."""
    column = _stored(name, kinds)
    value = row[column]
    cells = value if isinstance(value, list) else [value]
    return [
        Picture(locate(cell, [str(path.parent)]))
        if isinstance(cell, str)
        else Picture(str(path), number, column, item if isinstance(value, list) else -1)
        for item, cell in enumerate(cells)
        if cell
    ]
