"""Time side by side, memory beyond what was there before, the matmul ceiling: how all is measured here.

Other programs disturb every clock, so what is compared is run in turns in one process, and a ratio is taken
within each round: a slow moment of the machine hits both sides of it. On a busy CPU, processor time on one
thread is steadier than any clock.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], Any]

_RUN_SECONDS = 0.05  # a product is repeated until it takes about this long


@dataclass(frozen=True)
class Spread:
    """What several measurements of one thing were: seconds, or a ratio without a unit."""

    minimum: float
    median: float
    maximum: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(min(values), statistics.median(values), max(values), len(values))

    def scaled(self, factor: float) -> Spread:
        """The same measurements in another unit."""
        return Spread(*(factor * value for value in (self.minimum, self.median, self.maximum)), self.runs)

    def to_dict(self) -> dict[str, float]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.minimum:.3g}, {self.maximum:.3g}]"


@dataclass(frozen=True)
class Rounds:
    """Seconds of every run of every contender; entry i of each belongs to the same round."""

    seconds: Mapping[str, tuple[float, ...]]

    def spread(self, name: str) -> Spread:
        """Seconds of one contender."""
        return Spread.of(self.seconds[name])

    def ratio(self, name: str, to: str) -> Spread:
        """The seconds of `name` over those of `to`, round by round."""
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return Spread.of([mine / theirs for mine, theirs in pairs])


def in_turns(
    contenders: Mapping[str, Run],
    rounds: int,
    device: torch.device | str = "cpu",
    warm_up: int = 1,
    before: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Time the contenders one after another, `rounds` times, each waited for until the device is idle.

    warm_up: rounds that are not counted (compilation, caches, the memory allocator).
    clock: seconds; `time.process_time` counts the processor time of this process and all its threads.
    before: called with a contender's name before each of its runs, outside the clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warm_up + rounds):
        for name, run in contenders.items():
            if before is not None:
                before(name)
            synchronize(device)
            start = clock()
            run()
            synchronize(device)
            if number >= warm_up:
                seconds[name].append(clock() - start)
    return Rounds({name: tuple(values) for name, values in seconds.items()})


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute on a CPU with `count` threads, None: as many as before; afterwards all is as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize(device: torch.device | str) -> None:
    """Wait until everything that was asked of the device is done."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)  # CUDA (ROCm too), MPS, XPU; of several, the one that is meant


def peak_extra_bytes(run: Run, device: torch.device | str = "cpu") -> int | None:
    """Bytes of tensors in memory at the worst moment of `run`, beyond those that were there before it.

    On a CPU every allocation of torch is recorded by its profiler and added up, so the number is exact and
    the same on every run; scratch memory inside the matmul library is not in it. On a CUDA (or ROCm) device
    it is the allocator's own maximum. None where a device keeps no count.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _peak_on_cpu(run)
    if device.type != "cuda":
        return None
    synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = run()
    synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(run: Run) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or it reports every GPU that is not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it forgets events between cycles; there is one
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            result = run()
    del result
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # negative where memory is given back
        peak = max(peak, held)
    return peak


@dataclass(frozen=True)
class Matmul:
    """y (m, n) = x (m, k) W^T, the product every linear is made of."""

    m: int
    k: int
    n: int

    @property
    def flop(self) -> int:
        """Floating-point operations of one product, a multiplication and an addition counted as two."""
        return 2 * self.m * self.k * self.n

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"

    def runner(
        self, device: torch.device | str, dtype: torch.dtype, seconds: float = _RUN_SECONDS
    ) -> tuple[Run, int]:
        """A run of about that many seconds, and the operations in it."""
        x = torch.randn(self.m, self.k, device=device, dtype=dtype)
        weight = torch.randn(self.n, self.k, device=device, dtype=dtype)
        out = torch.empty(self.m, self.n, device=device, dtype=dtype)
        one = in_turns({"one": lambda: torch.mm(x, weight.t(), out=out)}, 3, device, warm_up=2)
        repeats = max(1, round(seconds / max(one.spread("one").minimum, 1e-7)))

        def run() -> None:
            for _ in range(repeats):
                torch.mm(x, weight.t(), out=out)  # into memory that is there: nothing but the product

        return run, repeats * self.flop


def matmul_ceiling(
    sizes: Sequence[Matmul], device: torch.device | str, dtype: torch.dtype, rounds: int = 5
) -> dict[Matmul, float]:
    """FLOP/s that plain products of these sizes reach, the best of `rounds`; the largest is the ceiling."""
    runners = {size: size.runner(device, dtype) for size in sizes}
    times = in_turns({str(size): run for size, (run, _) in runners.items()}, rounds, device)
    return {size: flop / times.spread(str(size)).minimum for size, (_, flop) in runners.items()}
