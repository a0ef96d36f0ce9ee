"""Rows of metadata files: CSV, JSON and JSON lines, each row with its place for error messages."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import HywuError
from .folders import read_text

Row = Mapping[str, Any]
_LONGEST_FIELD = 2**24  # letters of one CSV field


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, row) of a .csv, .json or .jsonl file; only .json is held in memory whole.

    Raises HywuError for a file that is not there, not UTF-8, or not in the format of its ending.
    """
    ending = path.suffix.lower()
    if ending == ".json":
        return _json_rows(path)
    try:
        path.stat()
    except OSError as error:
        raise HywuError(f"There is no file {path}.") from error
    return _lines(path) if ending == ".jsonl" else _csv_rows(path)


def read_json(path: Path) -> Any:
    """The content of a JSON file; HywuError if it is none."""
    try:
        return json.loads(read_text(path) or "")
    except (json.JSONDecodeError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise HywuError(f"{path} is not valid JSON{where}: {getattr(error, 'msg', error)}.") from error


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise HywuError(f"{path} must be a list of samples, and is a JSON {type(rows).__name__}.")
    for number, row in enumerate(rows, start=1):
        yield _checked(row, f"{path}, sample {number}")


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_text_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise HywuError(f"{place} is not valid JSON: {getattr(error, 'msg', error)}.") from error
        yield _checked(row, place)


def _csv_rows(path: Path) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.DictReader(_text_lines(path, newline=""), strict=True)
    try:
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise HywuError(f"{path} has several columns of one name: {', '.join(sorted(names))}.")
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                found = len(names) + len(row.get(None) or ()) - list(row.values()).count(None)
                raise HywuError(f"{place} has {found} fields, and the heading has {len(names)}.")
            yield place, row
    except csv.Error as error:
        raise HywuError(f"{path}, line {reader.line_num} is not valid CSV: {error}.") from error


def _text_lines(path: Path, newline: str | None = None) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig", newline=newline) as file:
            yield from file
    except UnicodeDecodeError as error:
        raise HywuError(f"{path} is not text in UTF-8; save it again in that encoding.") from error
    except OSError as error:
        raise HywuError(f"{path} cannot be read: {error.strerror or error}.") from error


def _checked(row: object, place: str) -> tuple[str, Row]:
    if not isinstance(row, dict):
        raise HywuError(f"{place} must be a dictionary of named values, and is {type(row).__name__}.")
    return place, row


def text_of(row: Row, name: str, place: str) -> str:
    """A value that must be text, perhaps empty; HywuError naming the columns there are, if it is absent."""
    value = row.get(name)
    if isinstance(value, str):
        return value
    if name in row and value is None:
        return ""
    said = f"is {value!r}, not text" if name in row else f"is missing; there are: {', '.join(map(str, row))}"
    raise HywuError(f"{place}: '{name}' {said}.")


def texts_of(row: Row, name: str, place: str) -> list[str]:
    """A value that is a text or a list of texts, without empty ones; HywuError for anything else."""
    value = row.get(name)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [item for item in value if item]
    return [text] if (text := text_of(row, name, place)) else []
