"""Where ComfyUI keeps generated LoRAs, and how many of them."""

from __future__ import annotations

import os
from pathlib import Path

import comfy.model_management
import folder_paths
import torch

from ..hywu_core.errors import HywuError
from ..hywu_core.generate import Cache
from ..hywu_core.generation_cache import DiskCache, MemoryCache
from .sockets import LoadedGenerator

CACHES = ("memory", "memory and disk", "off")

# In the user folder: it is the user's, survives a restart (which empties temp), and no loader lists it.
# Names with two underscores are not served to browsers.
FOLDER = "__hywu_cache"

_MEMORY = "HYWU_CACHE_MEMORY_MB"
_DISK = "HYWU_CACHE_DISK_MB"
_DISK_MB = 10_000
_PART_OF_MEMORY = 16


def caches_of(generator: LoadedGenerator, choice: str) -> list[Cache]:
    """The caches of a choice, the fastest first.

    Memory is the generator's own and goes with it when ComfyUI frees models: a sixteenth of the machine's
    main memory at most, or HYWU_CACHE_MEMORY_MB. The disk holds at most 10 GB, or HYWU_CACHE_DISK_MB.
    """
    if choice == "off":
        return []
    if generator.kept is None:
        total = comfy.model_management.get_total_memory(torch.device("cpu"))
        generator.kept = MemoryCache(_megabytes(_MEMORY, total // _PART_OF_MEMORY // 10**6))
    if choice == "memory":
        return [generator.kept]
    folder = Path(folder_paths.get_user_directory()) / FOLDER
    return [generator.kept, DiskCache(folder, _megabytes(_DISK, _DISK_MB))]


def _megabytes(variable: str, default: int) -> int:
    """Bytes of an environment variable in megabytes; HywuError if it is no number."""
    text = os.environ.get(variable, str(default))
    try:
        return max(0, int(float(text) * 10**6))
    except (ValueError, OverflowError):
        raise HywuError(
            f"The environment variable {variable} is {text!r}; it must be megabytes, such as {default}."
        ) from None
