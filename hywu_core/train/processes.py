"""The processes of a run, as far as the loop needs to know of them: who is first, and what all agree on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..cli import BAD_INPUT, INTERRUPTED, lacking_memory
from ..errors import HywuError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class AgreedError(HywuError):
    """An error that all processes raise at the same place: it is enough that the first one says so."""


@contextmanager
def one_speaks(*agreed: type[HywuError]) -> Iterator[None]:
    """Of an error that every process has, or of Ctrl-C, only the first process makes anything to be read.

    agreed: errors that are meant, beside `AgreedError`. The others end silently, with the same exit code.
    """
    try:
        yield
    except (AgreedError, KeyboardInterrupt, *agreed) as error:
        if first_process():
            raise
        raise SystemExit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else BAD_INPUT) from error


@contextmanager
def enough_memory() -> Iterator[None]:
    """HywuError, with what takes less of it, where a device has no memory left."""
    try:
        yield
    except RuntimeError as error:
        if (lacking := lacking_memory(error)) is None:
            raise
        raise HywuError(
            f"{lacking}. Take a smaller --batch-size, more micro-batches (--set accumulate=N), "
            "--recompute or a quantised backbone (--quantize); --plan says how much."
        ) from error


def first_process() -> bool:
    """Whether this is the first process that torchrun started, or the only one; known from the start."""
    return int(os.environ.get("RANK", "0")) == 0


def lost(error: RuntimeError) -> bool:
    """Whether an error, among several processes, means that another one does not answer any more."""
    words = ("gloo", "nccl", "connection", "socket", "peer", "timed out")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


class Processes:
    """`rank` of `world` processes. One by itself needs no torch.distributed.

    group: on which checkpoints are agreed about, beside the training itself; None for one process.
    """

    def __init__(self, rank: int = 0, world: int = 1, group: ProcessGroup | None = None) -> None:
        self.rank, self.world, self.group = rank, world, group

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def mean(self, numbers: Tensor) -> Tensor:
        """The mean over the processes of a tensor on the CPU."""
        if self.world == 1:
            return numbers
        total = numbers.clone()
        dist.all_reduce(total)
        return total / self.world

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def first(self, said: str | None) -> str | None:
        """What the first process that says anything says."""
        if self.world == 1:
            return said
        everything: list[str | None] = [None] * self.world
        dist.all_gather_object(everything, said, group=self.group)
        return next((each for each in everything if each is not None), None)

    def barrier(self) -> None:
        """Wait for all."""
        self.any(False)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The mean over the processes of the gradients of parameters that each of them holds in full."""
        if self.world == 1:
            return
        whole = [p for p in parameters if p.requires_grad and not hasattr(p, "full_tensor")]
        used = torch.tensor([p.grad is not None for p in whole], dtype=torch.int32)
        dist.all_reduce(used, dist.ReduceOp.MAX)  # what no process has a gradient for is left without one
        whole = [p for p, somewhere in zip(whole, used.tolist(), strict=True) if somewhere]
        if not whole:
            return
        for parameter in whole:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in whole]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = flat.div_(self.world).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


ALONE = Processes()
