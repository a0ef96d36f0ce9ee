"""The one training loop: every recipe is a `Task`, the loop moves its weights."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..devices import resolve_device, use_tf32, without_cudnn_attention
from ..errors import HywuError
from ..generator import ParameterGenerator
from .average import Average
from .checkpoint import TrainState
from .checkpoint_files import clear, require_storage
from .config import TrainConfig
from .gradients import clip
from .interrupt import deferred_interrupt
from .optimizer import make_optimizer, trained, update
from .parallel import Parallel
from .processes import AgreedError, Processes, lost
from .progress import training_bar
from .report import Readings, StepReport
from .share import Share
from .shown import Shown

log = logging.getLogger("hywu")
_BAR_SMOOTHING = 50  # steps over which the shown loss is averaged
_SYNC_EVERY = 20  # steps between reading losses back: a GPU must not wait for the CPU at every step


class Task(ABC):
    """What is trained, on what, and what it leaves behind."""

    name: str
    module: nn.Module  # holds exactly what is trained and what a checkpoint keeps
    frozen: tuple[nn.Module, ...] = ()  # large modules, used as they are; processes may divide them too
    share: Share = Share()  # which rows of every batch are this process's
    scalars: Mapping[str, Tensor] = MappingProxyType({})  # to be logged beside the last loss; detached
    shows_at_end: bool = False  # whether `finish` speaks of what was shown last

    @property
    def sharded(self) -> tuple[nn.Module, ...]:
        """Trained modules that processes may divide, because they are always called as a whole.

        By default the generators in `module`; each process keeps the rest of it in full.
        """
        return tuple(each for each in self.module.modules() if isinstance(each, ParameterGenerator))

    @abstractmethod
    def batch(self, size: int, generator: torch.Generator, index: int) -> Any:
        """This process's rows of a fresh random batch of `size`, computed in full precision.

        All randomness comes from `generator`, which is in the same state on every process: each draws the
        numbers of the whole batch and keeps those of its `share`. index: micro-batches before this one.
        """

    @abstractmethod
    def loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """The scalar loss of this process's rows, computed under the run's precision.

        Its mean over the processes is the loss of the batch. Side paths stay attached until the next call:
        the backward pass may run the forward again.
        """

    def show(self) -> Shown | None:
        """Held-out edits as things are now, for a person to look at; called by every process.

        A run with an average of the weights shows that, now as at the end: it is what will be exported.
        """
        return None

    def about(self) -> dict[str, Any]:
        """What is learned from, as plain data for the run folder; a resumed run must find the same."""
        return {}

    @abstractmethod
    def finish(self, out: Path) -> str:
        """Export the result into the run folder, measure it, and say in a sentence what was reached."""


class Watch(Protocol):
    """Somebody who is told of every step, on the first process."""

    def on_step(self, report: StepReport) -> None:
        """Called once for each step, some steps late on a GPU."""

    def on_show(self, step: int, shown: Shown) -> None:
        """Called with what the task shows of itself after some steps."""

    def work(self, rows: int) -> AbstractContextManager:
        """Around the loss and the backward pass of a micro-batch of `rows`, over all processes."""


def train(
    task: Task,
    config: TrainConfig,
    out: Path,
    run: dict[str, object],
    resume: bool = False,
    parallel: Parallel | None = None,
    watch: Watch | None = None,
) -> list[float]:
    """Train `task` to `config.steps`, checkpointing into `out`; returns the loss of every step.

    Called by every process of the run. Afterwards `task.module` holds, on the first one, what is to be
    exported: whole, and the average of the weights where the run has one.

    Ctrl-C on any process ends the step, writes a checkpoint and raises KeyboardInterrupt on all; a loss or a
    gradient that is not finite stops all with AgreedError and leaves the last good checkpoint, as does a
    process that cannot be reached, with HywuError. Checkpoints that a finished run left in `out` are removed
    first, unless this run continues from one.
    """
    require_storage()
    parallel = parallel or Parallel()
    device = resolve_device(config.device)
    use_tf32(config.precision == "tf32")
    without_cudnn_attention()
    # Shapes repeat, so searching for the best kernel pays.
    torch.backends.cudnn.benchmark = device.type == "cuda"
    if config.weights == "bf16":
        task.module.to(torch.bfloat16)
    parallel.apply(task, config)
    generator = torch.Generator(device).manual_seed(config.seed)
    average = Average(task.module, config.ema) if config.ema else None
    optimizer = make_optimizer(task.module, config)
    state = TrainState(task.module, optimizer, generator, [], average, parallel)
    with _all_answering(state, out, parallel):
        if parallel.main:
            clear(out, keep=resume)
        parallel.barrier()
        if resume:
            state.restore(out)
            if parallel.main:
                log.info("resuming %s at step %d of %d", task.name, state.step, config.steps)
        _Steps(task, config, state, out, parallel, watch).run(run)
        if average is not None:
            average.apply()
        if task.shows_at_end or config.sample_every:
            show(task, state.step, parallel, watch)
        parallel.gather(task)
    return state.losses


@contextmanager
def _all_answering(state: TrainState, out: Path, processes: Processes) -> Iterator[None]:
    """Say in a sentence when a process does not answer; leave no checkpoint half written, however it ends."""
    try:
        yield
    except RuntimeError as error:
        if processes.world == 1 or not lost(error):
            raise
        raise HywuError(
            f"A process of this run has ended or cannot be reached, near step {state.step + 1}; "
            f"{state.last_good(out)}. Continue with --resume."
        ) from error
    finally:
        state.abandon()


def show(task: Task, step: int, parallel: Parallel, watch: Watch | None) -> None:
    """Let a task show itself, by all processes together; the first one tells who watches."""
    shown = task.show()
    if shown is not None and watch is not None and parallel.main:
        watch.on_show(step, shown)


class _Steps:
    """The steps of a run that are still to be done."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        state: TrainState,
        out: Path,
        parallel: Parallel,
        watch: Watch | None,
    ) -> None:
        self.task, self.config, self.state, self.out = task, config, state, out
        self.parallel, self.watch = parallel, watch
        device = state.generator.device.type
        half = config.precision == "bf16"
        self._autocast = torch.autocast(device, torch.bfloat16) if half else nullcontext()
        self._read_every = 1 if device == "cpu" else _SYNC_EVERY
        self._parameters = list(trained(state.optimizer))
        self._readings = Readings()
        self._work = nullcontext if watch is None else watch.work

    def run(self, described: dict[str, object]) -> None:
        """Until the last step, or until somebody interrupts."""
        config, state = self.config, self.state
        bar = training_bar(self.task.name, config.steps, state.step, self.parallel.main)
        # Ctrl-C inside an update would leave half of the weights moved and the random numbers already drawn.
        with deferred_interrupt() as interrupted, bar:
            for step in range(state.step, config.steps):
                self._step(step)
                if self.parallel.any(interrupted.is_set()):
                    interrupted.set()
                stop = interrupted.is_set() or step + 1 == config.steps
                due = stop or (step + 1) % config.checkpoint_every == 0
                if due or (step + 1) % self._read_every == 0:
                    self._read()
                    recent = state.losses[-_BAR_SMOOTHING:]
                    bar.set_postfix_str(f"loss {sum(recent) / len(recent):.4f}", refresh=False)
                bar.update()
                if due:
                    state.save(self.out, described)
                if stop:
                    break
                if config.sample_every and (step + 1) % config.sample_every == 0:
                    self._read()
                    with nullcontext() if state.average is None else state.average.shown():
                        show(self.task, step + 1, self.parallel, self.watch)
                    self._readings.restart()
            state.settle()

    def _step(self, step: int) -> None:
        task, config, state = self.task, self.config, self.state
        state.optimizer.zero_grad(set_to_none=True)
        losses, scalars = [], []
        for index in range(step * config.accumulate, (step + 1) * config.accumulate):
            batch = task.batch(config.micro_batch, state.generator, index)
            with self._work(config.micro_batch):
                with self._autocast:
                    loss = task.loss(batch, state.generator)
                (loss / config.accumulate).backward()
            losses.append(loss.detach())
            scalars.append(task.scalars)
        self.parallel.average_gradients(self._parameters)
        norm = clip(self._parameters, config.grad_clip)
        update(state.optimizer, config, step)
        if state.average is not None:
            state.average.update(step + 1)
        rate = config.learning_rate(step)
        self._readings.add(rate, config.batch_size, _mean(losses), norm, _means(scalars))

    def _read(self) -> None:
        """Wait for the losses of the last steps; all processes read the same."""
        state = self.state
        numbers = self.parallel.mean(self._readings.numbers())
        for report in self._readings.reports(state.step + 1, numbers):
            bad = "The gradient is not finite after" if not math.isfinite(report.grad_norm) else ""
            bad = bad if math.isfinite(report.loss) else f"The loss became {report.loss} at"
            if bad:
                raise AgreedError(
                    f"{bad} step {report.step}; {state.last_good(self.out)}. "
                    f"Try a learning rate below {self.config.lr}."
                )
            state.losses.append(report.loss)
            if self.watch is not None and self.parallel.main:
                self.watch.on_step(report)


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack([value.float() for value in values]).mean()


def _means(scalars: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: _mean(each[name] for each in scalars) for name in scalars[-1]}
