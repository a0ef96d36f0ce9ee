"""Images in folders and their pairing by name: the part that most conventions share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...errors import HywuError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".avif", ".tif", ".tiff")
_ADDRESSES = ("http://", "https://", "s3://", "hf://")
_NUMBERED = re.compile(r"(.+)_(\d+)", re.DOTALL)


def check_folder(path: str | Path, place: str) -> Path:
    """A folder that is there; HywuError naming where it was asked for."""
    path = Path(path)
    if path.is_dir():
        return path
    raise HywuError(f"{place}: {path} is {'a file, not a folder' if path.exists() else 'not there'}.")


def resolve(path: str, *bases: Path) -> Path:
    """A path of a configuration: absolute, or below the first of `bases` where it exists (else the first).

    Trainers start from the folder they are run in; the folder of the configuration is tried too.
    HywuError for an address on the web.
    """
    return Path(locate(path, [str(base) for base in bases]))


def locate(path: str, bases: Sequence[str]) -> str:
    """`resolve` for the rows of large files: strings alone, and no more questions to the disk than needed."""
    if path.startswith(_ADDRESSES):
        raise HywuError(f"{path} is an address, not a file; download the images first.")
    if os.path.isabs(path):
        return path
    first = os.path.join(bases[0], path)
    if len(bases) == 1 or os.path.exists(first):
        return first
    return next((place for base in bases[1:] if os.path.exists(place := os.path.join(base, path))), first)


def list_images(folder: Path, deep: bool = True, endings: Sequence[str] = IMAGES) -> list[str]:
    """Images of a folder as sorted relative paths with '/'; hidden files and folders are left out.

    Linked files are taken, linked folders inside are not entered: they may lead back.
    """
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if deep else []
        inside = os.path.relpath(root, folder).replace(os.sep, "/")
        before = "" if inside == "." else f"{inside}/"
        found += [before + name for name in files if name.lower().endswith(tuple(endings)) and name[0] != "."]
    return sorted(found)


def stem_of(name: str) -> str:
    """A relative path without the ending of the file."""
    return name[: name.rindex(".")]


def by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    """Images under their relative paths without endings."""
    index: dict[str, list[str]] = {}
    for name in names:
        index.setdefault(stem_of(name), []).append(name)
    return index


def match_numbered(stems: Iterable[str], controls: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Controls of every target: those of its own name first, then name_0, name_1, ... in order of number.

    Of 'a' and 'a_0', both targets, 'a_0.png' belongs to the second: the longer name wins.
    Returns (controls by target, controls of no target).
    """
    targets = set(stems)
    found: dict[str, list[tuple[int, str]]] = {}
    orphans = []
    for name in controls:
        stem = stem_of(name)
        numbered = _NUMBERED.fullmatch(stem)
        if stem in targets:
            found.setdefault(stem, []).append((-1, name))
        elif numbered and numbered[1] in targets:
            found.setdefault(numbered[1], []).append((int(numbered[2]), name))
        else:
            orphans.append(name)
    return {stem: [name for _, name in sorted(names)] for stem, names in found.items()}, orphans


def read_caption(image: str | Path, ending: str = ".txt") -> str | None:
    """The text beside an image, or None where there is no such file. HywuError if it is not UTF-8."""
    return read_text(stem_of(str(image)) + ending, missing=True)


def read_text(path: str | Path, missing: bool = False) -> str | None:
    """A text file of UTF-8; with `missing`, None where there is none. HywuError if it cannot be read."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except FileNotFoundError as error:
        if missing:
            return None
        raise HywuError(f"There is no file {path}.") from error
    except UnicodeDecodeError as error:
        raise HywuError(
            f"{path} is not text in UTF-8 (byte {error.start}); save it again in that encoding."
        ) from error
    except OSError as error:
        raise HywuError(f"{path} cannot be read: {error.strerror or error}.") from error


def only_dictionaries(value: object, place: str) -> list[Mapping[str, object]]:
    """A list of named settings; HywuError if it is anything else."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise HywuError(f"{place} must be a list of named settings.")
    return value


def text_setting(settings: Mapping[str, object], name: str, place: str, default: str | None = None) -> str:
    """A setting that must be text; HywuError if it is not, or is absent without a default."""
    value = settings.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or not (value or default is not None):
        said = "is missing" if value in (None, "") else f"is {value!r}"
        raise HywuError(f"{place}: '{name}' {said}; it must be text.")
    return value
