"""Which samples make up step n on rank r: the same for ever from a seed, and no state to save but the step.

Every epoch has each sample as often as it is repeated, in batches of one layout. The batches of a step are
different ones on every rank.

Where all batches must be whole ("carry"), the last rows of a layout wait for the first of its next epoch:
batch j of a layout of n rows has the rows j * size, ... of all its epochs, one after the other. So a rare
shape is drawn exactly as often as any other, and which batch is whole by when needs no state, only division.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ...errors import HywuError

_TAILS = ("short", "drop", "carry")


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of sample indices by step.

    groups: for every sample the number of its layout (`buckets.group`); samples of one batch share it.
    tail: what the last samples of a layout make that are fewer than a batch: a 'short' batch, nothing
    ('drop'; others are left out in the next epoch), or a batch with the first of the next epoch ('carry').
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
        if self.steps_per_epoch < 1 and not (self.tail == "carry" and len(self._rows)):
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
        """Steps of every rank: each has as many batches as any other; what is left over waits an epoch.

        Of 'carry', whose epochs differ, at most.
        """
        return self.batches_per_epoch // self.world

    def at(self, step: int) -> list[int]:
        """The samples of this rank in a step, counted from 0 through all epochs."""
        if step < 0:
            raise HywuError(f"There is no step {step}.")
        if self.tail == "carry":
            return self._carried(step * self.world + self.rank)
        epoch, place = divmod(step, self.steps_per_epoch)
        order, starts, ends = self._epoch(epoch)
        batch = place * self.world + self.rank
        return order[starts[batch] : ends[batch]].tolist()

    def rare(self) -> tuple[int, int]:
        """(layouts with fewer rows than a batch, their rows): such a batch has the same sample twice."""
        few = self._sizes[self._sizes < self.batch_size]
        return len(few), int(few.sum())

    def from_step(self, step: int = 0) -> Iterator[list[int]]:
        """The batches of this rank from a step on, without end."""
        while True:
            yield self.at(step)
            step += 1

    def _carried(self, batch: int) -> list[int]:
        """The samples of a batch, counted over all epochs and ranks, of the tail 'carry'."""
        # Each layout is behind n / size batches an epoch by less than one: the epoch is this or soon after.
        epoch = batch * self.batch_size // len(self._rows)
        while self._whole(epoch + 1).sum() <= batch:
            epoch += 1
        before = int(self._whole(epoch).sum())
        layouts, numbers = _whole_batches(self, epoch)
        layout, number = int(layouts[batch - before]), int(numbers[batch - before])
        n, first = int(self._sizes[layout]), number * self.batch_size
        epochs = range(first // n, (first + self.batch_size - 1) // n + 1)
        rows = np.concatenate([self._mixed(layout, each) for each in epochs])
        skipped = first - epochs[0] * n
        return rows[skipped : skipped + self.batch_size].tolist()

    def _whole(self, epoch: int) -> np.ndarray:
        """(layouts,) batches of each that are whole when this epoch begins."""
        return self._sizes * epoch // self.batch_size

    def _mixed(self, layout: int, epoch: int) -> np.ndarray:
        """The rows of a layout in the order of an epoch."""
        if self._sizes[layout] < self.batch_size:  # of many epochs in one batch, and soon done
            return _mixed(self, layout, epoch)
        return _all_mixed(self, epoch)[layout]

    @cached_property
    def _by_layout(self) -> list[np.ndarray]:
        """The rows of each layout."""
        return np.split(self._rows, np.cumsum(self._sizes)[:-1])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(samples in order, start and end of every batch in the order of this epoch)."""
        return _epoch(self, epoch)


@lru_cache(maxsize=4)
def _epoch(batches: Batches, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = _random(batches.seed, epoch)
    size, kept = batches.batch_size, []
    order, starts, ends, first = [], [], [], 0
    for rows in batches._by_layout:
        mixed = rows[_mix(random, len(rows))]
        if batches.tail == "drop":
            mixed = mixed[: len(mixed) // size * size]
        cuts = np.arange(0, len(mixed), size)
        kept.append(len(cuts))
        order.append(mixed)
        starts.append(first + cuts)
        ends.append(first + np.minimum(cuts + size, len(mixed)))
        first += len(mixed)
    turn = _mix(random, sum(kept))
    return np.concatenate(order), np.concatenate(starts)[turn], np.concatenate(ends)[turn]


@lru_cache(maxsize=4)
def _whole_batches(batches: Batches, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(layout, number among its own) of every batch that an epoch makes whole, in the order of this epoch."""
    first, end = batches._whole(epoch), batches._whole(epoch + 1)
    layouts = np.repeat(np.arange(len(first)), end - first)
    numbers = np.concatenate([np.arange(*ends) for ends in zip(first, end, strict=True)])
    turn = _mix(_random(batches.seed, epoch), len(layouts))
    return layouts[turn], numbers[turn]


@lru_cache(maxsize=4)
def _all_mixed(batches: Batches, epoch: int) -> list[np.ndarray]:
    return [_mixed(batches, layout, epoch) for layout in range(len(batches._sizes))]


def _mixed(batches: Batches, layout: int, epoch: int) -> np.ndarray:
    rows = batches._by_layout[layout]
    return rows[_mix(_random(batches.seed, epoch, layout + 1), len(rows))]


def _random(seed: int, epoch: int, stream: int = 0) -> np.random.Philox:
    """Raw bits of a counter-based generator: unlike NumPy's own shuffles, the same in every version of it."""
    return np.random.Philox(key=(seed % 2**64) + ((epoch % 2**64) << 64), counter=stream << 128)


def _mix(random: np.random.Philox, n: int) -> np.ndarray:
    """A random order of n things."""
    return np.argsort(random.random_raw(n), kind="stable") if n else np.zeros(0, dtype=np.int64)
