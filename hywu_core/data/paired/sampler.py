"""Which samples make up step n on rank r: the same for ever from a seed, and no state to save but the step.

Every epoch has each sample as often as it is repeated, in batches of one layout. The batches of a step are
different ones on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ...errors import HywuError

_TAILS = ("short", "drop", "fill")


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of sample indices by step.

    groups: for every sample the number of its layout (`buckets.group`); samples of one batch share it.
    tail: what the last samples of a layout make that are fewer than a batch: a 'short' batch, nothing
    ('drop'; others are left out in the next epoch), or a batch filled up with others of the layout ('fill').
    """

    groups: Sequence[int]
    batch_size: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    tail: str = "short"
    repeats: Sequence[int] | None = None  # how often each sample counts in an epoch

    def __post_init__(self) -> None:
        if self.tail not in _TAILS:
            raise HywuError(
                f"There is no way '{self.tail}' with short batches; choose of: {', '.join(_TAILS)}."
            )
        if self.batch_size < 1:
            raise HywuError(f"A batch of {self.batch_size} samples is none; it must have at least 1.")
        if not 0 <= self.rank < self.world:
            raise HywuError(f"There is no rank {self.rank} of {self.world}.")
        if self.repeats is not None and len(self.repeats) != len(self.groups):
            raise HywuError(f"{len(self.repeats)} repeats are given for {len(self.groups)} samples.")
        if self.steps_per_epoch < 1:
            made = f"{len(self._rows)} samples make {self.batches_per_epoch} batches of {self.batch_size}"
            raise HywuError(
                f"{made}, too few for {self.world} processes; take smaller batches or more samples."
            )

    @cached_property
    def _rows(self) -> np.ndarray:
        """(rows,) every sample as often as it is repeated, those of a layout together."""
        repeats = 1 if self.repeats is None else np.asarray(self.repeats)
        rows = np.repeat(np.arange(len(self.groups)), repeats)
        return rows[np.argsort(np.asarray(self.groups)[rows], kind="stable")] if len(rows) else rows

    @cached_property
    def _sizes(self) -> np.ndarray:
        """(layouts,) number of rows of each layout that has any."""
        return np.unique(np.asarray(self.groups)[self._rows], return_counts=True)[1]

    @cached_property
    def batches_per_epoch(self) -> int:
        """Batches of all ranks together."""
        whole = self._sizes // self.batch_size
        return int((whole if self.tail == "drop" else -(-self._sizes // self.batch_size)).sum())

    @property
    def steps_per_epoch(self) -> int:
        """Steps of every rank: each has as many batches as any other; what is left over waits an epoch."""
        return self.batches_per_epoch // self.world

    def at(self, step: int) -> list[int]:
        """The samples of this rank in a step, counted from 0 through all epochs."""
        if step < 0:
            raise HywuError(f"There is no step {step}.")
        epoch, place = divmod(step, self.steps_per_epoch)
        order, starts, ends = self._epoch(epoch)
        batch = place * self.world + self.rank
        return order[starts[batch] : ends[batch]].tolist()

    def from_step(self, step: int = 0) -> Iterator[list[int]]:
        """The batches of this rank from a step on, without end."""
        while True:
            yield self.at(step)
            step += 1

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(samples in order, start and end of every batch in the order of this epoch)."""
        return _epoch(self, epoch)


@lru_cache(maxsize=4)
def _epoch(batches: Batches, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Raw bits of a counter-based generator: unlike NumPy's own shuffles, the same in every version of it.
    random = np.random.Philox(key=(batches.seed % 2**64) + ((epoch % 2**64) << 64))
    size, kept = batches.batch_size, []
    order, starts, ends, first = [], [], [], 0
    for rows in np.split(batches._rows, np.cumsum(batches._sizes)[:-1]):
        mixed = rows[_mix(random, len(rows))]
        if batches.tail == "drop":
            mixed = mixed[: len(mixed) // size * size]
        elif batches.tail == "fill" and len(mixed) % size:
            mixed = np.concatenate([mixed, np.resize(mixed, size - len(mixed) % size)])
        cuts = np.arange(0, len(mixed), size)
        kept.append(len(cuts))
        order.append(mixed)
        starts.append(first + cuts)
        ends.append(first + np.minimum(cuts + size, len(mixed)))
        first += len(mixed)
    turn = _mix(random, sum(kept))
    return np.concatenate(order), np.concatenate(starts)[turn], np.concatenate(ends)[turn]


def _mix(random: np.random.Philox, n: int) -> np.ndarray:
    """A random order of n things."""
    return np.argsort(random.random_raw(n), kind="stable") if n else np.zeros(0, dtype=np.int64)
