"""Files that count up: `prefix_00001_`, `prefix_00002_` ..., in their folder, never overwritten.

Several processes may save under one prefix at once: a name belongs to whoever puts a finished file there
first, and the others take the next number.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path

from ..errors import HywuError
from ..storage import AlreadyThereError, made_folder, path_inside

_REFUSED = '<>:"|?*'  # by Windows; a file saved on another system may be copied there
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_TIMES = {
    "%year%": "%Y",
    "%month%": "%m",
    "%day%": "%d",
    "%hour%": "%H",
    "%minute%": "%M",
    "%second%": "%S",
}


def save_numbered(
    folder: str | os.PathLike[str], prefix: str, suffix: str, write: Callable[[Path], object]
) -> Path:
    """Let `write` make the file or folder `folder/prefix_NNNNN_suffix` with the next free number; its path.

    prefix: may have subfolders, which are made, and %year%, %month%, %day%, %hour%, %minute%, %second%. One
        that is a link is followed: whoever put it into the folder wants the files there. Those made for a
        save that fails go again while they are empty.
    write: gets the path and raises `AlreadyThereError` if it is taken (see `storage.atomic_path`).

    Raises `HywuError` for a prefix that is empty, leads out of the folder, or has what Windows refuses.
    """
    return _save(_stem(folder, prefix), suffix, write)


def _save(stem: Path, suffix: str, write: Callable[[Path], object]) -> Path:
    with made_folder(stem.parent):
        try:
            number = _highest(stem) + 1
        except OSError as error:
            raise HywuError(f"Could not read the folder {stem.parent}: {error}.") from error
        while True:
            path = stem.with_name(f"{stem.name}_{number:05}_{suffix}")
            try:
                write(path)
                return path
            except AlreadyThereError:
                number += 1


def save_all_numbered(
    folder: str | os.PathLike[str], prefix: str, suffix: str, writes: Iterable[Callable[[Path], object]]
) -> list[Path]:
    """`save_numbered` for each of `writes`; when one fails, those written before it are removed again.

    All have the time of the first in their name.
    """
    stem = _stem(folder, prefix)
    with made_folder(stem.parent), ExitStack() as undo:
        paths = []
        for write in writes:
            paths.append(_save(stem, suffix, write))
            undo.callback(_remove, paths[-1])
        undo.pop_all()
    return paths


def _remove(path: Path) -> None:
    with suppress(OSError):  # why it is removed is what has to be told
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _stem(folder: str | os.PathLike[str], prefix: str) -> Path:
    name = prefix.strip().replace("\\", "/")
    now = datetime.now()
    for variable, form in _TIMES.items():
        name = name.replace(variable, now.strftime(form))
    if bad := sorted({c for c in name if c in _REFUSED or ord(c) < 32}):
        raise HywuError(
            f"The name {prefix!r} has the characters {' '.join(map(repr, bad))}, which Windows refuses in "
            "file names; leave them out."
        )
    stem = path_inside(folder, name, follow_links=True)
    for part in name.split("/")[:-1]:
        if part.split(".")[0].lower() in _DEVICES or (part not in ("", ".", "..") and part[-1] in ". "):
            raise HywuError(
                f"The name {prefix!r} has a folder {part!r}, which Windows refuses; choose another name."
            )
    return stem


def _highest(stem: Path) -> int:
    """The highest number already used with this stem, of files and folders of any kind."""
    pattern = re.compile(re.escape(stem.name) + r"_(\d+)_?(\..*)?", re.IGNORECASE)
    matches = (pattern.fullmatch(entry.name) for entry in stem.parent.iterdir())
    return max((int(match[1]) for match in matches if match), default=0)
