"""One run at a time in a run folder: two would remove each other's checkpoints.

The system itself holds the lock for as long as the process lives, so one that was killed blocks nobody, on
this machine or on another that shares the disk. The file's words only say whom there is to ask.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import HywuError
from ..storage import made_folder
from .processes import AgreedError, Processes

log = logging.getLogger("hywu")
NAME = ".run.lock"
_PLACE = 1 << 30  # the byte that Windows locks, far behind the words: nobody else can read that one


@contextmanager
def alone(folder: Path, processes: Processes) -> Iterator[None]:
    """Make a run folder, and let no other run into it meanwhile; called by every process of a run.

    Raises AgreedError, on all of them, where another run is going on there. What fails takes the folder with
    it if there is nothing in it.
    """
    with ExitStack() as stack:
        said = None
        if processes.main:
            try:
                stack.enter_context(made_folder(folder))
                stack.enter_context(_held(folder))
            except HywuError as error:
                said = str(error)
        if (said := processes.first(said)) is not None:
            raise AgreedError(said)
        yield


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    path = folder / NAME
    file = _taken(folder, path)
    try:
        with suppress(OSError):  # a full disk is for others to complain about
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        if os.name != "nt":  # while it is held: later it may be somebody else's
            path.unlink(missing_ok=True)
        os.close(file)
        if os.name == "nt":  # which removes no file that somebody has open
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _taken(folder: Path, path: Path) -> int:
    """The lock file, open and locked; HywuError where another process has it."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise HywuError(f"Cannot write {path}: {error.strerror or error}.") from error
        if not _lock(file):
            whose = os.read(file, 200).decode("utf-8", "replace")
            os.close(file)
            raise HywuError(
                f"A run is going on in {folder} ({whose or 'it has just begun'}): wait for its end, or name "
                "another folder with --out."
            )
        with suppress(OSError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)  # its owner has removed it just before; the name is free again


def _lock(file: int) -> bool:
    """Lock an open file for this process; False where another has."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(file, _PLACE, os.SEEK_SET)
            try:
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(file, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        log.warning("Files cannot be locked there (%s): nothing keeps a second run out of the folder.", error)
    return True
