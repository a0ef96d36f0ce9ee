"""What a measurement hands to people (a table) and to other programs (a JSON file)."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .errors import HywuError
from .storage import atomic_path, check_writable


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of text in columns: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(w) if not i else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def megabytes(n_bytes: int | None) -> str:
    """A size for people, in millions or thousands of millions of bytes."""
    if n_bytes is None:
        return "unknown"
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def machine(device: torch.device | str) -> dict[str, Any]:
    """What the numbers were measured on."""
    device = torch.device(device)
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": device.type,
        "name": name,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def check_json(path: Path | None) -> None:
    """HywuError unless a file can be written there, before anything is measured."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        raise HywuError(f"Cannot write {path}: name a file in a folder that exists.")
    check_writable(path)


def as_json(result: Mapping[str, Any]) -> str:
    """A result for other programs."""
    return json.dumps(result, indent=2)


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(as_json(result) + "\n", encoding="utf-8", newline="\n")
