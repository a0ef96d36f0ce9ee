"""Files that are never half there and never trusted: atomic writing, careful reading of safetensors."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from .errors import HywuError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it is synced and becomes `path`.

    Whatever goes wrong, `path` keeps its old content or stays absent, and the temporary file is removed.
    Raises `HywuError` for a missing folder, and in place of an `OSError` (no space, no permission).
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise HywuError(f"Cannot write {path}: the folder {path.parent} does not exist.")
    if path.is_dir():
        raise HywuError(f"Cannot write {path}: it is a folder.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise HywuError(f"Could not write {path}: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and string metadata atomically. Raises `HywuError` as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(dict(tensors), temporary, metadata=dict(metadata))
        temporary.chmod(mode)  # safetensors makes its files private; a shared model folder must stay readable


@contextmanager
def open_safetensors(path: str | os.PathLike[str]) -> Iterator[safetensors.safe_open]:
    """Open a safetensors file on the CPU; reading errors inside the block become `HywuError` too.

    Raises `HywuError` if the file is missing, truncated or not a safetensors file at all.
    """
    path = Path(path)
    if not path.is_file():
        raise HywuError(f"There is no file {path}.")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        raise HywuError(f"{path} is not a complete safetensors file: {error}.") from error


def path_inside(folder: str | os.PathLike[str], name: str) -> Path:
    """`folder / name`, where `name` may have subfolders but must stay in the folder, also through links.

    Raises `HywuError` for an empty name, an absolute one, and one that climbs out.
    """
    folder = Path(folder).resolve()
    try:
        path = (folder / name.strip()).resolve()
    except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links
        path = folder
    if path == folder or not path.is_relative_to(folder):
        raise HywuError(f"{name!r} is not a file name inside {folder}; give a relative path without '..'.")
    return path
