"""Many processes on one run, applied to a task from outside."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParallelConfig:
    """How the processes of a run are arranged."""


class Parallel:
    """One process by itself."""

    main = True
