"""The resumable state of a run: weights, optimiser, average, random generator and losses.

Everything a run depends on is in there, so that an interrupted run continues to the same weights, bit for bit
on a CPU, and on any number of processes. See `checkpoint_files.py` for what it looks like on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import HywuError
from . import checkpoint_files as files
from .average import Average, local
from .optimizer import trained
from .processes import ALONE, AgreedError, Processes

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata


@dataclass
class TrainState:
    """A run between two steps."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    losses: list[float]
    average: Average | None = None
    processes: Processes = ALONE
    saved: int = 0  # the step of the last checkpoint written or read
    _writing: tuple[int, Path, Future] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        # Now: between two passes a sharded module may have its weights whole, which are other parameters.
        self._names = {parameter: name for name, parameter in self.module.named_parameters()}

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.losses)

    def save(self, folder: Path, run: dict[str, object]) -> None:
        """Begin to write the state beside a description of the run; the old one stays until this is whole.

        Called by every process. Only the copy is waited for; the next call, and `settle`, wait for the rest.
        Raises HywuError for weights that are not finite, a checkpoint nobody could continue from.
        """
        self.settle()
        bad = next((n for n, t in self.module.state_dict().items() if not _finite(local(t))), None)
        if (name := self.processes.first(bad)) is not None:
            raise AgreedError(f"{name} is not finite after step {self.step}; {self.last_good(folder)}.")
        tensors = {name: _at_least_1d(tensor).contiguous() for name, tensor in self._tensors()}
        self._writing = (
            self.step,
            folder,
            files.write(folder, self.step, tensors, run, self.processes.group),
        )

    def settle(self) -> None:
        """Wait for a checkpoint that is being written; HywuError where that went wrong."""
        if self._writing is None:
            return
        step, folder, writing = self._writing
        self._writing = None
        files.wait(writing, folder, step)
        self.saved = step

    def abandon(self) -> None:
        """Wait for a checkpoint that is being written, whether it succeeds or not: there is another error."""
        with suppress(HywuError):
            self.settle()

    def last_good(self, folder: Path) -> str:
        """What a run that has gone astray says about its last checkpoint."""
        self.abandon()
        if not self.saved:
            return "no checkpoint was written before"
        return f"the last good checkpoint, of step {self.saved}, is in {folder}"

    def restore(self, folder: Path) -> None:
        """Continue from `folder`; HywuError where its tensors do not fit this run."""
        path = files.describe(folder).path
        stored = files.stored(path)
        found = {name: tuple(meta.size) for name, meta in stored.items()}
        losses = torch.zeros(found.get("losses", (0,)), dtype=torch.float64)
        random = self.generator.get_state()
        if found.get("rng") != tuple(random.shape):
            raise AgreedError(
                f"{path} was trained on another device than '{self.generator.device.type}'; resume there."
            )
        slots = self._slots(stored)
        into = {**dict(self._weights()), "rng": random, "losses": losses}
        into |= {f"optimizer.{n}.{s}": t for n, own in slots.items() for s, t in own.items()}
        into = {name: _at_least_1d(tensor) for name, tensor in into.items()}
        wanted = {name: tuple(tensor.shape) for name, tensor in into.items()}
        if differ := sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n)):
            name = differ[0]
            raise AgreedError(
                f"{path} belongs to another model: {name} has the shape {found.get(name, 'of nothing')} "
                f"there and {wanted.get(name, 'of nothing')} here; {len(differ)} tensors differ."
            )
        files.read(path, into, self.processes.group)
        self._load_optimizer(slots)
        self.generator.set_state(random)
        self.losses = losses.tolist()
        self.saved = self.step

    def _load_optimizer(self, slots: dict[str, dict[str, Tensor]]) -> None:
        packed = self.optimizer.state_dict()
        order = [index for group in packed["param_groups"] for index in group["params"]]
        state = {}
        for index, (name, parameter) in zip(order, self._trained().items(), strict=True):
            own = slots.get(name, {})
            state[index] = {s: t.reshape(() if s == "step" else parameter.shape) for s, t in own.items()}
        self.optimizer.load_state_dict({**packed, "state": state})

    def _trained(self) -> dict[str, nn.Parameter]:
        """The optimiser's parameters, in its order, by the names the module has for them."""
        return {self._names[parameter]: parameter for parameter in trained(self.optimizer)}

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.module.state_dict().items():
            yield f"model.{name}", tensor
        if self.average is not None:
            for name, tensor in self.average.weights.items():
                yield f"average.{name}", tensor

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._weights()
        for name, parameter in self._trained().items():
            for slot, value in self.optimizer.state[parameter].items():
                yield f"optimizer.{name}.{slot}", torch.as_tensor(value)
        yield "rng", self.generator.get_state()
        yield "losses", torch.tensor(self.losses, dtype=torch.float64)

    def _slots(self, stored: Mapping[str, TensorStorageMetadata]) -> dict[str, dict[str, Tensor]]:
        """Room for what a checkpoint's optimiser keeps of each of our parameters, sharded as they are."""
        parameters = self._trained()
        slots: dict[str, dict[str, Tensor]] = {}
        for full, meta in stored.items():
            kind, _, rest = full.partition(".")
            name, _, slot = rest.rpartition(".")
            if kind != "optimizer" or name not in parameters:
                continue
            like, dtype = parameters[name].detach(), meta.properties.dtype
            alike = slot != "step" and meta.size == like.shape
            room = torch.zeros_like(like, dtype=dtype) if alike else torch.zeros(meta.size, dtype=dtype)
            slots.setdefault(name, {})[slot] = room
        return slots


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """All tensors and the run description of a run folder's newest checkpoint.

    Raises HywuError for a missing, damaged or foreign one.
    """
    described = files.describe(folder)
    return files.read_all(described.path), described.run


def _at_least_1d(tensor: Tensor) -> Tensor:
    """What the storage can have; shares memory."""
    tensor = tensor.detach()
    return tensor.reshape(1) if tensor.ndim == 0 else tensor


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
