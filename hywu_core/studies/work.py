"""Units of a study's work, each kept whole as it finishes, so that an interrupted study goes on where it was.

A unit has a name, such as ("seed 1", "hywu"). Its value is a file in OUT/parts, beside the settings that all
parts were made with and, in the file, the revision of the code that made it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from torch import Tensor

from .. import __version__
from ..errors import HywuError
from ..storage import atomic_path, open_safetensors, write_safetensors

Value = TypeVar("Value")  # plain data, as JSON has it
_ROOT = Path(__file__).resolve().parents[2]


class Work:
    """The finished units of a run in OUT/parts; nothing is made there before there is something to keep."""

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        """HywuError if there are parts made with other settings: they must not be mixed."""
        self.out, self.settings = out, dict(settings)
        self.revisions = {revision()}  # asked now: results that are kept in the repository change it
        self._parts = out / "parts"
        path = self._parts / "settings.json"
        if not path.is_file():
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        if before != self.settings:
            changed = ", ".join(_differences(before, self.settings))
            raise HywuError(
                f"{self._parts} holds parts of another run: {changed}. "
                "Give another --out, or remove that folder to begin again."
            )

    def unit(self, *name: str, make: Callable[[], Value]) -> Value:
        """The value of a unit: what was kept of it, or else `make()`, which is kept."""
        path = self._path(name, ".json")
        if path.is_file():
            part = json.loads(path.read_text(encoding="utf-8"))
        else:
            part = {"revision": revision(), "value": make()}
            self._open()
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(part, ensure_ascii=False, allow_nan=False), encoding="utf-8")
            part = json.loads(path.read_text(encoding="utf-8"))  # the same types as when it is resumed
        self.revisions.add(part["revision"])
        return part["value"]

    def tensors(self, *name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """As `unit`, for tensors."""
        path = self._path(name, ".safetensors")
        if not path.is_file():
            made = {key: tensor.detach().cpu().contiguous() for key, tensor in make().items()}
            self._open()
            write_safetensors(path, made, {"revision": revision()})
        with open_safetensors(path) as file:
            self.revisions.add(file.metadata()["revision"])
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def folder(self, *name: str) -> Path:
        """A folder for a unit that keeps itself, such as a training run that resumes from its checkpoints."""
        self._open()
        path = self._path(name, "")
        path.mkdir(exist_ok=True)
        return path

    def _path(self, name: tuple[str, ...], ending: str) -> Path:
        return self._parts / ("--".join(quote(part, safe=" +,=") for part in name) + ending)

    def _open(self) -> None:
        """Make the folder, and say in it what its parts are of."""
        self._parts.mkdir(parents=True, exist_ok=True)
        path = self._parts / "settings.json"
        if not path.is_file():
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(self.settings, indent=1), encoding="utf-8")


@lru_cache
def revision() -> str:
    """The code's version: its git revision, "-dirty" where files were changed since, or the package's."""
    if not (_ROOT / ".git").exists():
        return __version__
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return __version__


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """ "config.samples is 20 there and 200 now" for everything that differs."""
    found = []
    for key in sorted({*before, *now}):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} is {_short(a)} there and {_short(b)} now")
    return found


def _short(value: Any) -> str:
    return str(value) if len(str(value)) <= 24 else f"{str(value)[:12]}..."
