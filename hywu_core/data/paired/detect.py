"""What a path holds: the convention is told by the names and the first contents of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import HywuError
from . import ai_toolkit, diffsynth, huggingface, musubi, plain, simpletuner
from .collect import Collector
from .metadata import read_json, read_rows
from .options import Options

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.json", "metadata.parquet")
_TABLES = (".parquet", ".arrow")
_CONFIGURATIONS = (".toml", ".yaml", ".yml", ".json", ".jsonl", ".csv")

_Reader = Callable[[Path, Options, Collector], None]


@dataclass(frozen=True)
class Found:
    """A data set as it was recognised."""

    convention: str
    path: Path  # the file or folder that says it
    read: _Reader
    uses: tuple[str, ...]  # the options that say something about it


def _read_table(path: Path, options: Options, into: Collector) -> None:
    huggingface.read_tables([path], options, into)


def _read_tables_of(folder: Path, options: Options, into: Collector) -> None:
    huggingface.read_tables(huggingface.find_tables(folder, options), options, into)


# Names of conventions, each with how one of its files is read, and which options are looked at.
_FILES: dict[str, tuple[_Reader, tuple[str, ...]]] = {
    "ai-toolkit": (ai_toolkit.read, ai_toolkit.USES),
    "musubi-tuner": (musubi.read, musubi.USES),
    "diffsynth": (diffsynth.read, diffsynth.USES),
    "simpletuner": (simpletuner.read, simpletuner.USES),
    "huggingface": (huggingface.read_metadata, huggingface.USES),
}
CONVENTIONS = (*_FILES, "folders")


def detect(path: Path, options: Options) -> Found:
    """Recognise a data set.

    HywuError where there is none, where it may be read in several ways, and for an option that says nothing
    about one of its convention.
    """
    if options.convention not in (None, *CONVENTIONS):
        raise HywuError(
            f"There is no convention '{options.convention}'; choose of: {', '.join(CONVENTIONS)}."
        )
    if not path.is_file() and not path.is_dir():
        raise HywuError(f"There is no data set at {path}.")
    found = _file(path, options) if path.is_file() else _folder(path, options)
    options.refuse_unused(found.uses, f"{found.path} ({found.convention})")
    return found


def _file(path: Path, options: Options) -> Found:
    if path.suffix.lower() in _TABLES:
        if options.convention not in (None, "huggingface"):
            raise HywuError(f"{path} is a table; --convention {options.convention} has none, leave it out.")
        return Found("huggingface", path, _read_table, huggingface.USES)
    convention = options.convention or _of_file(path, options)
    if convention not in _FILES:
        kinds = ", ".join((*_CONFIGURATIONS, *_TABLES))
        raise HywuError(f"{path} is no configuration or metadata of a known data set ({kinds}).")
    return Found(convention, path, *_FILES[convention])


def _of_file(path: Path, options: Options) -> str | None:
    """The convention of a file, by its ending and its first contents."""
    ending = path.suffix.lower()
    if ending == ".toml":
        return "musubi-tuner"
    if ending in (".yaml", ".yml"):
        return "ai-toolkit"
    if ending == ".json":
        content = read_json(path)
        if ai_toolkit.recognise(content):
            return "ai-toolkit"
        if simpletuner.recognise(content):
            return "simpletuner"
        return _of_row(path, options) if isinstance(content, list) else None
    return _of_row(path, options) if ending in (".jsonl", ".csv") else None


def _of_row(path: Path, options: Options) -> str:
    """The convention of rows of metadata."""
    place, row = next(read_rows(path), (str(path), None))
    if row is None:
        raise HywuError(f"{path} has no samples.")
    if path.suffix.lower() == ".jsonl" and ("image_path" in row or "image_path_0" in row):
        return "musubi-tuner"
    if huggingface.recognise(list(row)):
        return "huggingface"
    if diffsynth.recognise(row):
        return "diffsynth"
    if options.target_column or options.control_columns:
        return "huggingface"  # any columns, as the user names them
    raise HywuError(
        f"{place}: the columns {', '.join(map(str, row))} are of no known convention; "
        "say what they are with --target-column, --control-column and --prompt-column."
    )


def _folder(folder: Path, options: Options) -> Found:
    plainly = Found("folders", folder, plain.read, plain.USES)
    if options.convention == "folders" or (options.convention is None and options.control_folders):
        return plainly
    found = list(_configurations(folder, options))
    if options.convention is not None:
        found = [one for one in found if one.convention == options.convention]
        if not found:
            raise HywuError(f"{folder} has no data set of {options.convention}.")
    if len(found) > 1:
        names = ", ".join(f"{one.path.name} ({one.convention})" for one in found)
        raise HywuError(f"{folder} can be read in several ways: give the path of one of {names}.")
    return found[0] if found else plainly


def _configurations(folder: Path, options: Options) -> Iterator[Found]:
    """Every file of a folder that says what the data set is, the surest kind alone."""
    if files := sorted(folder.glob("multidatabackend*.json")):
        yield from (_file(file, options) for file in files)
        return
    inner = folder / (options.split or "train")
    for place in (inner, folder) if options.split else (folder, inner):
        if files := [place / name for name in _METADATA if (place / name).is_file()]:
            found = (_file(file, options) for file in files)
            yield from (replace(f, uses=(*f.uses, "split")) if place == inner else f for f in found)
            return
    if huggingface.find_tables(folder, options):
        yield Found("huggingface", folder, _read_tables_of, (*huggingface.USES, "split"))
        return
    for file in sorted(folder.glob("[!.]*")):
        if file.suffix.lower() in (".toml", ".yaml", ".yml", ".jsonl") and file.is_file():
            try:
                convention = _of_file(file, options)
            except HywuError:
                if file.suffix.lower() == ".jsonl":
                    continue  # a file of something else: it is no reason not to read the folders
                raise
            if convention == "ai-toolkit" and not ai_toolkit.recognise(ai_toolkit.read_config(file)):
                continue
            yield Found(convention, file, *_FILES[convention])
