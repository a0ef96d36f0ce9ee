"""Files that are never half there and never trusted: atomic writing, careful reading of safetensors."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from .errors import HywuError


class AlreadyThereError(HywuError):
    """A file that was to be new has appeared in the meantime, made by another process perhaps."""


@contextmanager
def atomic_path(path: str | os.PathLike[str], new: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it is synced and becomes `path`.

    new: never replace a file; of several processes that write the same name at once, one succeeds.

    Whatever goes wrong, `path` keeps its old content or stays absent, and the temporary file is removed.
    Raises `HywuError` for a missing folder, and in place of an `OSError` (no space, no permission);
    `AlreadyThereError` where a new file is asked for and there is one.
    """
    path = Path(path)
    if not os.path.isdir(path.parent):  # unlike Path.is_dir, no error for a name that is too long
        raise HywuError(f"Cannot write {path}: the folder {path.parent} does not exist.")
    if os.path.isdir(path):
        raise HywuError(f"Cannot write {path}: it is a folder.")
    temporary = temporary_beside(path)
    try:
        yield temporary
        sync(temporary)
        if new:
            _publish(temporary, path)
        else:
            os.replace(temporary, path)
    except FileExistsError as error:
        raise AlreadyThereError(f"There is a file {path} already; it is not overwritten.") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise HywuError(f"Could not write {path}: {error}.") from error
    finally:
        if os.path.lexists(temporary):
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path, end: str = "tmp") -> Path:
    """A hidden name that nobody has, beside `path`: as long as its own, which may be all that is allowed.

    It begins as `path` does, so that leftovers are recognised; names of up to 14 letters are too short.
    """
    own = f"{secrets.token_hex(4)}.{end}"
    head = path.name[: -len(own) - 2]  # a letter for each: no more bytes, and no more of UTF-16
    return path.with_name(f".{head}.{own}" if head else f".{own}")


def check_writable(path: str | os.PathLike[str]) -> None:
    """HywuError unless a file can be made beside `path`, before long work: one is made, and removed."""
    temporary = temporary_beside(Path(path))
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise HywuError(f"Cannot write {path}: {error.strerror or error}.") from error


def _publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name, or raise FileExistsError if the name is taken."""
    if os.name == "nt":
        os.rename(temporary, path)  # which on Windows never replaces
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: claim the name with an empty file, then fill it
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, path)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], new: bool = True) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block ends well, it is synced and becomes `path`.

    new: never replace anything; otherwise a folder that is there is replaced with all that is in it.

    Whatever goes wrong, an old folder is as it was, and of the new one nothing is left. Raises as
    `atomic_path` does.
    """
    path = Path(path)
    if not os.path.isdir(path.parent):
        raise HywuError(f"Cannot make {path}: the folder {path.parent} does not exist.")
    temporary, old = (temporary_beside(path, end) for end in ("tmp", "old"))
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                sync(file)
        if not new and os.path.exists(path):
            os.rename(path, old)
        if os.path.exists(path):
            raise FileExistsError(path)
        os.rename(temporary, path)  # refuses a folder that has anything in it, on every system
    except (OSError, safetensors.SafetensorError) as error:
        if new and os.path.exists(path):
            raise AlreadyThereError(f"There is {path} already; it is not overwritten.") from error
        raise HywuError(f"Could not make the folder {path}: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if os.path.exists(path):
            shutil.rmtree(old, ignore_errors=True)
        elif os.path.exists(old):
            os.rename(old, path)


@contextmanager
def made_folder(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make a folder and those above it; when the block fails, those it made go again while they are empty.

    Raises `HywuError` for a folder that cannot be made.
    """
    path = Path(path)
    made: list[Path] = []
    try:
        try:
            made = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HywuError(f"Could not make the folder {path}: {error}.") from error
        yield
    except BaseException:
        for folder in made:  # the innermost first
            with suppress(OSError):  # not made after all, or somebody has put something into it
                folder.rmdir()
        raise


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file is on the disk; OSError where there is no room for it after all."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    new: bool = False,
) -> None:
    """Write tensors and string metadata atomically. Raises as `atomic_path` does."""
    with atomic_path(path, new) as temporary:
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
    if not os.path.isfile(path):
        raise HywuError(f"There is no file {path}.")
    try:
        file = safetensors.safe_open(path, framework="pt", device="cpu")
    # It is opened twice, the second time by torch, to which a file that has gone meanwhile is a RuntimeError.
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise _incomplete(path, error) from error
    try:
        with file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        raise _incomplete(path, error) from error


def _incomplete(path: Path, error: Exception) -> HywuError:
    return HywuError(f"{path} is not a complete safetensors file: {error}.")


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes; OSError where it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def path_inside(folder: str | os.PathLike[str], name: str, follow_links: bool = False) -> Path:
    """`folder / name`, where `name` may have subfolders but must stay in the folder.

    follow_links: where the user's own links inside the folder lead is up to the user; no name leaves it by
        itself. Otherwise a link that leads out is refused too.

    Raises `HywuError` for an empty name, an absolute one, and one that climbs out.
    """
    folder = Path(folder).resolve()
    path = Path(os.path.normpath(folder / name.strip()))
    if "\0" in name or path == folder or not path.is_relative_to(folder):
        raise HywuError(f"{name!r} is not a file name inside {folder}; give a relative path without '..'.")
    if follow_links:
        return path
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        real = folder
    if real == folder or not real.is_relative_to(folder):
        steps = [step for step in (*path.parents, path) if step.is_relative_to(folder) and step != folder]
        link = next((step for step in steps if step.is_symlink()), path)
        raise HywuError(f"{name!r} is not a file name inside {folder}: the link {link} leads out of it.")
    return real
