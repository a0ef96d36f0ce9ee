"""Training checkpoints on disk: `checkpoint-STEP`, a folder of safetensors shards that is whole or not there.

Every process writes its own shards (torch.distributed.checkpoint, no pickle) into a hidden folder beside it.
When all are done and on the disk, `checkpoint.json` says what run they are of and how long each file is, the
folder gets its name, and only then the checkpoint before it is removed. Many machines need one shared disk.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from torch import Tensor

from ..errors import HywuError
from ..storage import atomic_path
from .processes import AgreedError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

PREFIX = "checkpoint-"
MARKER = "checkpoint.json"
_KIND = "hywu-training-checkpoint-2"


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself: where it is, how far its run had come, and what run that is."""

    path: Path
    step: int
    run: dict[str, Any]


def newest(folder: Path) -> Path | None:
    """The checkpoint of most steps in a run folder."""
    return max(_checkpoints(folder), key=lambda path: int(path.name[len(PREFIX) :]), default=None)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, and nothing else that somebody keeps there under a similar name."""
    named = folder.glob(f"{PREFIX}*")
    return [path for path in named if path.name[len(PREFIX) :].isdecimal() and path.is_dir()]


def describe(folder: Path) -> Description:
    """The newest checkpoint of a run folder; HywuError for none, a damaged, truncated or foreign one."""
    path = newest(folder)
    if path is None:
        raise HywuError(f"There is nothing to resume in {folder}: it has no {PREFIX}STEP.")
    if not (path / MARKER).is_file():
        raise HywuError(f"{path} is not a checkpoint of this trainer: it has no {MARKER}.")
    try:
        described = json.loads((path / MARKER).read_text(encoding="utf-8"))
        kind = described["kind"]
        step, run, files = int(described["step"]), described["run"], dict(described["files"])
        run["recipe"], run["config"]["steps"], run["settings"]
    except (KeyError, TypeError, ValueError) as error:
        raise HywuError(f"{path / MARKER} is damaged: its description of the run is not complete.") from error
    if kind != _KIND:
        raise HywuError(f"{path} is not a checkpoint of this trainer, but of the kind '{kind}'.")
    for name, size in files.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise HywuError(f"{path} is not a complete checkpoint: {name} {state}.")
    return Description(path, step, run)


def clear(folder: Path, keep: bool) -> None:
    """Remove what crashed runs left half written in a run folder and, unless `keep`, its checkpoints."""
    for path in (*folder.glob(f".{PREFIX}*.tmp"), *(() if keep else _checkpoints(folder))):
        _remove(path)


def write(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    run: Mapping[str, object],
    group: ProcessGroup | None,
) -> Future:
    """Begin to write; the future is done when the checkpoint has its name. `tensors` may change at once.

    Called by every process of `group`, each with its shards.
    """
    from torch.distributed.checkpoint import async_save

    writer = _writer(folder, step, run)
    _expect_one_process()
    return async_save(dict(tensors), storage_writer=writer, process_group=group)


def wait(writing: Future, folder: Path, step: int) -> None:
    """Wait for a checkpoint; HywuError where it could not be written, and then nothing is left of it."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        writing.result()
    except CheckpointException as error:
        _remove(_hidden(folder, step))
        raise AgreedError(f"Could not write a checkpoint into {folder}: {_reason(error)}.") from error
    except (OSError, RuntimeError) as error:
        raise HywuError(f"Could not write a checkpoint into {folder}: {error}.") from error


def stored(path: Path) -> dict[str, TensorStorageMetadata]:
    """Sizes and dtypes of a checkpoint's tensors; HywuError where a shard is damaged."""
    reader = _reader(path)
    try:
        return dict(reader.read_metadata().state_dict_metadata)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise HywuError(f"{path} is damaged: {error}.") from error


def read(path: Path, into: Mapping[str, Tensor], group: ProcessGroup | None) -> None:
    """Fill tensors, sharded in whatever way, with those of a checkpoint, in place; HywuError if it cannot."""
    from torch.distributed.checkpoint import load
    from torch.distributed.checkpoint.api import CheckpointException

    _expect_one_process()
    try:
        load(dict(into), storage_reader=_reader(path), process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise AgreedError(f"{path} could not be read: {_reason(error)}.") from error


def read_all(path: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole, on the CPU."""
    tensors = {n: torch.empty(m.size, dtype=m.properties.dtype) for n, m in stored(path).items()}
    read(path, tensors, None)
    return tensors


def _reason(error: Any) -> BaseException:
    """What went wrong on the first of the processes on which something did."""
    return next(iter(error.failures.values()))[0]


def _reader(path: Path) -> Any:
    require_storage()
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(path))


def _writer(folder: Path, step: int, run: Mapping[str, object]) -> Any:
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    hidden = _hidden(folder, step)

    class Writer(HuggingFaceStorageWriter):
        """Gives the folder its name when every process has written."""

        def finish(self, metadata: Any, results: list[list[Any]]) -> None:
            """Called on the first process alone."""
            _publish(hidden, folder / f"{PREFIX}{step}", step, run)

    return Writer(str(hidden), save_distributed=True)


def _hidden(folder: Path, step: int) -> Path:
    return folder / f".{PREFIX}{step}.tmp"


def _publish(hidden: Path, path: Path, step: int, run: Mapping[str, object]) -> None:
    files = {file.name: file.stat().st_size for file in sorted(hidden.iterdir())}
    described = {"kind": _KIND, "step": step, "run": run, "files": files}
    with atomic_path(hidden / MARKER) as temporary:
        temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    if path.exists():
        _remove(path)
    os.rename(hidden, path)
    for other in _checkpoints(path.parent):
        if other != path:
            _remove(other)


def _remove(path: Path) -> None:
    """Without its name first, so that half of a checkpoint never looks like one."""
    if not path.name.startswith("."):
        hidden = path.with_name(f".{path.name}.old.tmp")
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(path, hidden)
        path = hidden
    shutil.rmtree(path, ignore_errors=True)


def _expect_one_process() -> None:
    """Let torch not warn, in whatever thread, that a single process is a single process."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


def require_storage() -> None:
    """HywuError where torch is too old to write checkpoints: 2.8 cannot save shards of many processes."""
    try:
        from torch.distributed.checkpoint import HuggingFaceStorageWriter

        sharded = "save_distributed" in signature(HuggingFaceStorageWriter).parameters
    except ImportError:
        sharded = False
    if not sharded:
        raise HywuError(
            f"Training writes its checkpoints with torch 2.9 or newer; this is torch {torch.__version__}."
        )
