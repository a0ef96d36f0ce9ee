"""What every command of the library shares: one sentence and an exit code, whatever goes wrong."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from .errors import HywuError

_DISTRIBUTIONS = {  # where pip's name is not the module's
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "flip_evaluator": "flip-evaluator",
}
_CPU_ALLOCATOR = "DefaultCPUAllocator"  # what begins torch's sentence where the machine has no memory left
BAD_INPUT, INTERRUPTED = 2, 130  # 130: as a shell reports a program ended by Ctrl-C


def command(main: Callable[[], int]) -> int:
    """Run a command's `main`; bad input and Ctrl-C become one line on standard error and an exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # file names that the terminal has no letters for
    try:
        return main()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except HywuError as error:
        sentence = str(error)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        sentence = f"{'The disk is full' if full else error.strerror or error}: {error.filename or error}."
    except MemoryError as error:
        sentence = f"{str(error) or 'There is not enough memory'}."
    except RuntimeError as error:
        if (lacking := lacking_memory(error)) is None:
            raise
        sentence = f"{lacking}."
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)  # noqa: T201
    return BAD_INPUT


def lacking_memory(error: RuntimeError) -> str | None:
    """What a device lacked memory for: what was wanted, there in all, and free; None for other errors."""
    said = str(error)
    if (start := said.find(_CPU_ALLOCATOR)) >= 0 and "memory" in said[start:]:
        return said[start:].rstrip(".")
    if not (type(error).__name__ == "OutOfMemoryError" or "out of memory" in said.lower()):
        return None
    return ". ".join(said.split(". ")[:3]).rstrip(".")


def quoted(path: Path) -> str:
    """A path as a word of a command line of this system's shell."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))


def require(*packages: str) -> None:
    """HywuError naming what to install, before work is begun that could not be finished without it."""
    if missing := [package for package in packages if find_spec(package) is None]:
        names = " ".join(_DISTRIBUTIONS.get(package, package) for package in missing)
        raise HywuError(f"This needs more packages; install them with: pip install {names}")


def check_folder(path: Path) -> None:
    """HywuError unless `path` is a folder to write into or can be made; makes nothing."""
    nearest = next((place for place in (path, *path.parents) if place.exists()), None)
    if nearest is None or not nearest.is_dir():
        raise HywuError(f"The folder {path} cannot be made: {nearest or path.anchor} is no folder.")
    if not os.access(nearest, os.W_OK):
        raise HywuError(f"The folder {path} cannot be written: {nearest} is read-only.")
