"""Hashes of images, remembered between runs: a file or a table's cell is read again only when it was touched.

Like git's index: a file is known by its path, length and times; one that changed within the last seconds is
not remembered, because a second change could leave those as they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from dataclasses import replace
from pathlib import Path

from ...errors import HywuError
from ...storage import atomic_path, file_sha256
from .pictures import Picture

_log = logging.getLogger("hywu")
_SETTLED_NS = 3_000_000_000


def _state_of(path: str) -> list[int]:
    """What changes when a file does."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class FileHashes:
    """SHA-256 of pictures; `save` keeps them in `folder` for the next run.

    Every process writes a file of its own, and reads all: no locks, and none is needed.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Load what earlier runs remembered; without a folder nothing is kept."""
        self._folder = None if folder is None else Path(folder)
        self._known: dict[str, list] = {}  # path or cell: [size, mtime, ctime, hash]
        self._new = False
        self._read: list[Path] = []
        self.load()

    def of(self, picture: Picture) -> str:
        """The hash of a picture's file, or of the bytes of a table's cell. HywuError if it cannot be read."""
        path = os.path.abspath(picture.path)
        name = replace(picture, path=path).to_text()  # the path itself, but of a cell
        try:
            state = _state_of(path)
            known = self._known.get(name)
            if known is not None and known[:3] == state:
                return known[3]
            found = file_sha256(path) if picture.row < 0 else hashlib.sha256(picture.read()).hexdigest()
            if _state_of(path) != state:
                raise HywuError(f"{path} was changed while it was read; start again when it is finished.")
        except FileNotFoundError as error:
            raise HywuError(f"There is no image {picture.path}.") from error
        except OSError as error:
            raise HywuError(f"The image {path} cannot be read: {error.strerror or error}.") from error
        if time.time_ns() - max(state[1:]) > _SETTLED_NS:
            self._known[name] = [*state, found]
            self._new = True
        return found

    def save(self) -> None:
        """Remember everything known in one file, and remove those it was read from."""
        if self._folder is None or not self._new:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"hashes-{secrets.token_hex(8)}.json"
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(self._known), encoding="utf-8")
        for path in self._read:
            path.unlink(missing_ok=True)
        self._read, self._new = [file], False

    def load(self) -> None:
        """Learn what is remembered in the folder by now; by other processes of this run, for example."""
        if self._folder is None:
            return
        for path in sorted(set(self._folder.glob("hashes-*.json")) - set(self._read)):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                self._known |= {name: value for name, value in content.items() if _whole(value)}
            except FileNotFoundError:
                continue  # another process has just merged it into its own
            except (OSError, ValueError, AttributeError):
                _log.warning("%s is no list of hashes; the files are read again.", path)
            self._read.append(path)


def _whole(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and isinstance(value[3], str)
