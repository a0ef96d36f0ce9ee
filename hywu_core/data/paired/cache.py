"""What encoders make of images and texts, on disk: keyed by content, safe with many processes and crashes.

An entry is one safetensors file under the hash of what it was made of: the bytes of the images or texts, the
encoder, and how they were prepared. Nothing is ever changed in place: an entry is written beside its name and
renamed, so no reader sees half of one, and two processes that make the same entry both write the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...errors import HywuError
from ...storage import open_safetensors, path_inside, write_safetensors

_log = logging.getLogger("hywu")
_KEY = re.compile(r"[0-9a-f]{64}")
_ABANDONED = 3600.0  # seconds after which an unfinished file is nobody's
_MADE_OF = "hywu.cache"


def cache_key(contents: Sequence[str | bytes], encoder: str, preparation: Mapping[str, object]) -> str:
    """The name of an entry: a SHA-256 of what it is made of.

    contents: hashes of images (`FileHashes.of`) and texts, in the order in which the encoder sees them;
    encoder: what identifies it with its weights; preparation: plain values such as size, crop and dtype.
    """
    hashed = [
        hashlib.sha256(item.encode() if isinstance(item, str) else item).hexdigest() for item in contents
    ]
    try:
        text = json.dumps([hashed, encoder, dict(preparation)], sort_keys=True, separators=(",", ":"))
    except TypeError as error:
        raise HywuError(f"The preparation {preparation} of a cached encoding is not plain data.") from error
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class CacheReport:
    """What a cache holds and did."""

    entries: int
    size: int  # bytes
    hits: int
    misses: int
    damaged: int

    def __str__(self) -> str:
        damaged = f", {self.damaged} damaged and made again" if self.damaged else ""
        return (
            f"{self.entries} entries, {self.size / 2**20:.1f} MB; "
            f"{self.hits} read, {self.misses} not there{damaged}"
        )


class EncodingCache:
    """Tensors by key in a folder of their own; as large as what is put there."""

    def __init__(self, folder: str | Path) -> None:
        """Open a cache, made where there is none; unfinished files of processes that died are removed."""
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HywuError(
                f"The cache folder {folder} cannot be made: {error.strerror or error}."
            ) from error
        self._hits = self._misses = self._damaged = 0
        self._sweep()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry, or None. A damaged entry is removed and counts as absent."""
        path = self._path(key)
        if not path.is_file():
            self._misses += 1
            return None
        try:
            with open_safetensors(path) as file:
                if (file.metadata() or {}).get(_MADE_OF) != key:
                    raise HywuError(f"{path} is not the entry its name says.")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iteration
        except HywuError as error:
            _log.warning("A cached encoding is damaged and will be made again: %s", error)
            path.unlink(missing_ok=True)
            self._damaged += 1
            return None
        self._hits += 1
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry, whole or not at all. HywuError where the disk is full or may not be written."""
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise HywuError(f"The folder {path.parent} cannot be made: {error.strerror or error}.") from error
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_safetensors(path, kept, {_MADE_OF: key})

    def get_or_make(self, key: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """An entry, made and written if it is not there. Two processes at once may both make it."""
        tensors = self.get(key)
        if tensors is None:
            tensors = dict(make())
            self.put(key, tensors)
        return tensors

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def report(self) -> CacheReport:
        """Size and use; walks the folder."""
        sizes = [path.stat().st_size for path in self.folder.glob("??/*.safetensors") if path.name[0] != "."]
        return CacheReport(len(sizes), sum(sizes), self._hits, self._misses, self._damaged)

    def _path(self, key: str) -> Path:
        """Where an entry lies; never outside the folder, whatever links someone put there."""
        if not _KEY.fullmatch(key):
            raise HywuError(f"{key!r} is no key of a cache; make one with cache_key.")
        name = f"{key[:2]}/{key}.safetensors"
        path_inside(self.folder, name)
        return self.folder / name

    def _sweep(self) -> None:
        """Remove what processes that were killed while writing have left."""
        old = time.time() - _ABANDONED
        for path in self.folder.glob("??/.*.tmp"):
            try:
                if path.stat().st_mtime < old:
                    path.unlink()
            except OSError:
                continue  # another process was faster
