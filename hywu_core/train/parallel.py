"""One run on many GPUs, applied to a task from outside: no model and no task knows how many there are.

The processes form a grid (replicate, shard, sequence). Trained generators and frozen backbones are sharded
block by block over (shard, sequence) with FSDP2 and repeated over replicate (HSDP). Processes along
`sequence` write their adapters together (`sequence.py`). What cannot be sharded is kept whole on each process
and its gradients are averaged.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from ..devices import resolve_device
from ..errors import HywuError
from ..generator import ParameterGenerator
from ..generator.model import KEEP_START_BYTES
from ..generator.sequence import WHOLE
from .processes import AgreedError, Processes, lost
from .sharding import blocks, can_shard, recompute, shard, unshard
from .share import Dealing, Share
from .ulysses import read_alone, read_together

if TYPE_CHECKING:
    from .config import TrainConfig
    from .loop import Task

# For the slowest process to build its models, and until one that hangs is noticed.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class ParallelConfig:
    """How the processes of a run are arranged; their product is the number of processes.

    replicate: copies of everything. shard: processes over which weights are cut up; 0: all that are left.
    sequence: processes that write their adapters together. ulysses: they also read images together.
    recompute: recompute activations in the backward pass, block by block. compile: compile block by block.
    """

    replicate: int = 1
    shard: int = 0
    sequence: int = 1
    ulysses: bool = False
    recompute: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, least in (("replicate", 1), ("shard", 0), ("sequence", 1)):
            if getattr(self, name) < least:
                raise HywuError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.ulysses and self.sequence == 1:
            raise HywuError("ulysses divides images over the sequence group; set sequence to 2 or more.")

    def over(self, world: int) -> ParallelConfig:
        """With `shard` filled in; HywuError where so many processes cannot be arranged like this."""
        others = self.replicate * self.sequence
        shard = self.shard or max(1, world // others)
        if shard * others != world:
            raise HywuError(
                f"replicate {self.replicate} x shard {self.shard or '(the rest)'} x sequence {self.sequence} "
                f"cannot be {world} process{'es' if world > 1 else ''}; their product must be."
            )
        return replace(self, shard=shard)


def add_parallel_arguments(parse: argparse.ArgumentParser) -> None:
    """The arrangement on the command line; a resumed run may have another."""
    group = parse.add_argument_group("many processes", "under torchrun, one for each GPU")
    group.add_argument("--replicate", type=int, default=1, help="copies of all weights")
    group.add_argument("--shard", type=int, default=0, help="processes that share them (default: the rest)")
    group.add_argument("--sequence", type=int, default=1, help="processes that write adapters together")
    group.add_argument("--ulysses", action="store_true", help="they also read images together")
    group.add_argument("--recompute", action="store_true", help="recompute activations, block by block")
    group.add_argument("--compile-blocks", action="store_true", help="compile all models, block by block")


def parallel_config(arguments: argparse.Namespace) -> ParallelConfig:
    """What `add_parallel_arguments` reads."""
    return ParallelConfig(
        arguments.replicate,
        arguments.shard,
        arguments.sequence,
        arguments.ulysses,
        arguments.recompute,
        arguments.compile_blocks,
    )


class Parallel(Processes):
    """The processes of a run in their arrangement. `Parallel()` is one process by itself."""

    def __init__(self, config: ParallelConfig | None = None) -> None:
        """Inside a process group, of all its processes; see `joined`."""
        alone = not (dist.is_available() and dist.is_initialized())
        world = 1 if alone else dist.get_world_size()
        self.config = (config or ParallelConfig()).over(world)
        super().__init__(
            0 if alone else dist.get_rank(),
            world,
            None if alone else dist.new_group(backend="gloo", timeout=_TIMEOUT),
        )

    @classmethod
    @contextmanager
    def joined(cls, config: ParallelConfig, device: str) -> Iterator[Parallel]:
        """The run that torchrun has started this process for, or one by itself; left at the end.

        Each process gets a GPU of its own where `device` is one. Raises HywuError for an arrangement that
        does not come to the number of processes, and for devices that cannot work together,
        and, whatever the processes are at, where one of them does not answer.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        config.over(world)
        if world == 1:
            yield cls(config)
            return
        kind = resolve_device(device).type
        if kind not in ("cpu", "cuda"):
            raise HywuError(f"{world} processes cannot train together on '{kind}'; use cuda or cpu.")
        if torch.device(device if device != "auto" else kind).index is not None:
            raise HywuError(f"{world} processes cannot share '{device}'; say cuda, and each gets its own.")
        if kind == "cuda":
            place, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if place >= there:
                raise HywuError(f"Process {place} of this machine has no GPU of its own: there are {there}.")
            torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=_TIMEOUT)
            yield cls(config)
        except (AgreedError, KeyboardInterrupt):
            _part()
            raise
        except RuntimeError as error:
            if not lost(error):
                raise
            raise HywuError("A process of this run has ended or cannot be reached.") from error
        _part()  # after another error the others may never answer

    def leave(self) -> None:
        """Part from the others before the end: what follows is done by each process for itself."""
        if self.world > 1:
            _part()

    @property
    def share(self) -> Share:
        """What a task is told: which rows are this process's."""
        team = self.config.sequence
        if self.config.ulysses:  # a team reads its images together: all of it has the same rows
            return Share(self.rank // team, self.world // team)
        return Share(self.rank, self.world, team)

    def dealing(self, repeats: int, accumulate: int) -> Dealing:
        """How the rows of a step are dealt out, with `repeats` rows of each condition."""
        team = self.config.sequence
        return Dealing(self.world, team, team if self.config.ulysses else 1, repeats, accumulate)

    def apply(self, task: Task, config: TrainConfig) -> None:
        """Share out a task's rows and, where there are several processes, its weights."""
        task.share = self.share
        for module in (*task.sharded, *task.frozen):
            self._prepare(module)
        if self.world == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh

        from .sequence import DividedSequence

        for parameter in task.module.parameters():  # equal seeds may differ on unequal machines
            dist.broadcast(parameter.detach(), 0)
        kind = resolve_device(config.device).type
        inner = self.config.shard * self.config.sequence
        mesh = init_device_mesh(kind, (self.config.replicate, inner), mesh_dim_names=("replicate", "shard"))
        teams = (self.world // self.config.sequence, 1, self.config.sequence)
        team = init_device_mesh(kind, teams, mesh_dim_names=("team", "ring", "ulysses"))
        for module in self._readers(task):
            read_together(module, team)
        for module in task.sharded:
            if isinstance(module, ParameterGenerator):
                module.keep_start_bytes = 0  # sharded weights do not count how often they are written
                module.sequence = DividedSequence(team["ulysses"]) if self.config.sequence > 1 else WHOLE
            shard(module, mesh, torch.bfloat16 if config.precision == "bf16" else None)
        for module in task.frozen:
            if inner > 1 and can_shard(module):
                shard(module, mesh)

    def _readers(self, task: Task) -> list[nn.Module]:
        """The transformers whose images a team reads together."""
        modules = (*task.sharded, *task.frozen) if self.config.ulysses and self.world > 1 else ()
        return [module for module in modules if not isinstance(module, ParameterGenerator)]

    def _prepare(self, module: nn.Module) -> None:
        if isinstance(module, ParameterGenerator):
            module.gradient_checkpointing |= self.config.recompute
            if self.config.compile:
                module.compile_blocks()
            return
        for block in blocks(module):
            if self.config.recompute:
                recompute(block)
            if self.config.compile:
                block.compile()

    def gather(self, task: Task) -> None:
        """Make a task's modules whole again on the first process, as if it had been alone.

        Called by every process; the others are left with nothing they could use.
        """
        task.share = Share()
        if self.world == 1:
            return
        for module in self._readers(task):
            read_alone(module)
        for module in (*task.sharded, *task.frozen):
            unshard(module, keep=self.main)
            if isinstance(module, ParameterGenerator):
                module.sequence, module.keep_start_bytes = WHOLE, KEEP_START_BYTES


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
