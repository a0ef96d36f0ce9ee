"""What was generated once: adapters by what they were generated from, in memory and, by choice, on disk.

An entry is one LoRA. Its key is a SHA-256 of the condition's digest and the generator's fingerprint, so an
entry is never wrong and never out of date; all that ever has to be decided is which ones to keep. Bounds on
the update come after it (`lora/limits.py`), and instructions are no part of it: nobody can read them on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .errors import HywuError
from .lora import Adapter
from .storage import open_safetensors, write_safetensors

logger = logging.getLogger("hywu")

_FORMAT = "1"  # of keys and files; another one when a generator of the same bits writes other numbers
_SUFFIX = ".safetensors"
_STALE_SECONDS = 24 * 3600  # after which a temporary file has no writer any more


def cache_key(generator_sha256: str, condition_sha256: str, device: str) -> str:
    """The key of one LoRA. `device` ("cpu", "cuda") is part of it: each kind rounds in its own way."""
    return hashlib.sha256(f"{_FORMAT} {generator_sha256} {condition_sha256} {device}".encode()).hexdigest()


def size_of(adapter: Adapter) -> int:
    """Bytes of memory its tensors keep alive."""
    storages = (tensor.untyped_storage() for pair in adapter.values() for tensor in pair)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class MemoryCache:
    """Adapters in memory, at most `max_bytes` of them: those used last."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._entries: OrderedDict[str, Adapter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Adapter | None:
        """The adapter, whose tensors are shared and must not be written to; None if it is not there."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: str, adapter: Adapter) -> None:
        """Keep an adapter, and let go of others; one that is larger than the bound is not kept."""
        if key in self._entries:
            self.n_bytes -= size_of(self._entries.pop(key))
        if (size := size_of(adapter)) > self.max_bytes:
            return
        self._entries[key] = adapter
        self.n_bytes += size
        while self.n_bytes > self.max_bytes:
            self.n_bytes -= size_of(self._entries.popitem(last=False)[1])


class DiskCache:
    """Adapters in a folder, a file each, at most `max_bytes` of them: those that any process used last.

    The folder is made when something is first written to it, and can be deleted at any time. Whatever is
    wrong with it costs a warning and a computation, never a run.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def get(self, key: str) -> Adapter | None:
        """The adapter, on the CPU; None if it is not there. A damaged file is removed, with a warning."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            adapter = _read(path, key)
        except HywuError as error:
            if path.is_file():  # else another process has made room
                logger.warning("A kept LoRA is damaged and is generated again: %s", error)
                _remove(path)
            return None
        try:
            os.utime(path)  # used just now
        except OSError:
            logger.debug("Cannot mark %s as used", path)
        return adapter

    def put(self, key: str, adapter: Adapter) -> None:
        """Write a file, whole or not at all, then remove those used longest ago."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self._path(key), key, adapter)
            self._make_room()
        except (HywuError, OSError) as error:
            logger.warning("A generated LoRA could not be kept on disk: %s", error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _make_room(self) -> None:
        used = []
        for path in self.folder.iterdir():
            try:
                state = path.stat()
            except OSError:  # removed by another process
                continue
            if path.suffix == _SUFFIX:
                used.append((state.st_mtime_ns, state.st_size, path))
            elif path.suffix == ".tmp" and state.st_mtime < time.time() - _STALE_SECONDS:
                _remove(path)
        total = sum(size for _, size, _ in used)
        for _, size, path in sorted(used):
            if total <= self.max_bytes:
                return
            _remove(path)
            total -= size


def _write(path: Path, key: str, adapter: Adapter) -> None:
    # Numbered, because a file's tensors come back in another order than they went; copied, because what was
    # generated together shares memory, which the format does not allow.
    tensors = {
        f"{number:06}.{factor}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for number, pair in enumerate(adapter.values())
        for factor, tensor in zip("AB", pair, strict=True)
    }
    header = {
        "hywu.kept_lora": _FORMAT,
        "key": key,
        "sha256": _digest(tensors),
        "targets": json.dumps(list(adapter)),
        "scale": adapter.scale.hex(),
        "provenance": json.dumps(dict(adapter.provenance)),
    }
    write_safetensors(path, tensors, header)


def _read(path: Path, key: str) -> Adapter:
    with open_safetensors(path) as file:
        header = file.metadata() or {}
        # Copied: what is mapped to the file would change with it, and keep others from replacing it.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    if header.get("key") != key or header.get("sha256") != _digest(tensors):
        raise HywuError(f"{path} does not hold what its name and header say.")
    try:
        names = json.loads(header["targets"])
        weights = {
            name: (tensors[f"{number:06}.A"], tensors[f"{number:06}.B"]) for number, name in enumerate(names)
        }
        return Adapter(weights, float.fromhex(header["scale"]), json.loads(header["provenance"])).check()
    except (KeyError, ValueError, TypeError) as error:
        raise HywuError(f"{path} has a damaged header: {error!r}.") from error


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # on Windows, while another process reads it
        logger.debug("Cannot remove %s: %s", path, error)
