"""Which part of a step a process does, told to tasks without telling them how many processes there are.

Every process draws the random numbers of the whole step and then computes only its own rows: a run has the
same losses on any number of processes. A step of n rows is C conditions with R = n / C rows of the backbone
each, condition by condition. Processes that write their adapters together (a team, see `sequence.py`) read
the same conditions and deal out those conditions' rows among themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from ..errors import HywuError
from .processes import AgreedError


@dataclass(frozen=True)
class Dealing:
    """How many ways the rows of a step are dealt out.

    sequence: processes that write their adapters together. together: those that compute a row together.
    repeats: rows of a condition. accumulate: micro-batches of a step. called: what the processes are.
    """

    processes: int = 1
    sequence: int = 1
    together: int = 1
    repeats: int = 1
    accumulate: int = 1
    called: str = "processes"

    @property
    def unit(self) -> int:
        """The smallest batch of which every process gets as much as every other."""
        teams = self.processes // self.sequence
        return math.lcm(self.processes // self.together, teams * self.repeats) * self.accumulate

    def check(self, batch: int) -> None:
        """AgreedError for a batch of so many rows that cannot be dealt out evenly."""
        if batch % self.unit:
            teams = self.processes // self.sequence if self.sequence > 1 else 1
            ways = (
                (self.processes, self.called),
                (teams, f"teams of {self.sequence}"),
                (self.repeats, "noise levels"),
                (self.accumulate, "micro-batches"),
            )
            said = ", ".join(f"{n} {name}" for n, name in ways if n > 1)
            raise AgreedError(
                f"The batch size {batch} cannot be dealt out to {said}; take a multiple of {self.unit}."
            )


@dataclass(frozen=True)
class Share:
    """The part of process `rank` of `world`; consecutive processes form teams of `team`."""

    rank: int = 0
    world: int = 1
    team: int = 1

    def rows(self, n: int) -> slice:
        """This process's of the n rows of a step; HywuError where they cannot be dealt out evenly."""
        if n % self.world:
            raise HywuError(
                f"{n} rows cannot be dealt out evenly to {self.world} processes; choose a batch size (and "
                f"accumulate, and noise levels) that leaves each micro-batch a multiple of {self.world}."
            )
        return self.part(n)

    def part(self, n: int) -> slice:
        """This process's of n things of which some processes may get one more: weigh each by world / n."""
        return slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def turns(self, n: int) -> range:
        """This process's of n things, taken by turns: also what an earlier run left undone is dealt out."""
        return range(self.rank, n, self.world)

    @property
    def conditions(self) -> Share:
        """How the step's conditions are dealt out to the teams."""
        return Share(self.rank // self.team, self.world // self.team)

    @property
    def member(self) -> Share:
        """How what a team has is dealt out to its members."""
        return Share(self.rank % self.team, self.team)

    def pairs(self, conditions: int, repeats: int) -> tuple[list[int], list[int]]:
        """Of this team's `conditions`, with `repeats` rows each: the adapters this process needs; its rows.

        Both are indices of the team's conditions. Each adapter serves the same number of consecutive
        rows, as `attach` wants it; where a cut goes through a condition unevenly, each row has its own.
        """
        rows = [row // repeats for row in range(conditions * repeats)[self.member.rows(conditions * repeats)]]
        adapters = sorted(set(rows))
        even = len({rows.count(adapter) for adapter in adapters}) == 1
        return (adapters if even else rows), rows

    def mean(self, x: Tensor) -> Tensor:
        """The mean of x over all processes, as a loss may use it that is no mean over rows.

        Its gradient goes to this process's own x alone: the mean over the processes of such gradients is
        right where the loss depends on the mean in the same way on all of them.
        """
        if self.world == 1:
            return x
        total = x.detach().clone()
        dist.all_reduce(total)
        return x + (total / dist.get_world_size() - x.detach())
