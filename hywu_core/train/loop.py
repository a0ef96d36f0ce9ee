"""The one training loop: every recipe is a `Task`, the loop moves its weights."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..devices import resolve_device
from ..errors import HywuError
from .average import Average
from .checkpoint import FILE_NAME, TrainState
from .config import TrainConfig
from .interrupt import deferred_interrupt
from .parallel import Parallel
from .progress import training_bar
from .report import Readings, StepReport
from .share import Share

log = logging.getLogger("hywu")
_BAR_SMOOTHING = 50  # steps over which the shown loss is averaged
_SYNC_EVERY = 20  # steps between reading losses back: a GPU must not wait for the CPU at every step


class Task(ABC):
    """What is trained, on what, and what it leaves behind."""

    name: str
    module: nn.Module  # holds exactly what is trained and what a checkpoint keeps
    frozen: tuple[nn.Module, ...] = ()  # large modules that are used as they are; processes may divide them
    share: Share = Share()  # which rows of every batch are this process's
    scalars: Mapping[str, Tensor] = MappingProxyType({})  # to be logged beside the last loss; detached

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

    @abstractmethod
    def finish(self, out: Path) -> str:
        """Export the result into the run folder, measure it, and say in a sentence what was reached."""


class Watch(Protocol):
    """Somebody who is told of every step, on the first process."""

    def on_step(self, report: StepReport) -> None:
        """Called once for each step, some steps late on a GPU."""


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Decay matrices only: norms, biases and embeddings of one row have no scale to bound."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


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

    Afterwards `task.module` holds what is to be exported: the average of the weights where the run has one.

    Ctrl-C ends the step, writes a checkpoint and raises KeyboardInterrupt; a loss or a gradient that is not
    finite stops the run with HywuError and leaves the last good checkpoint. A checkpoint that a finished run
    left in `out` is removed first, unless this run continues from it.
    """
    parallel = parallel or Parallel()
    device = resolve_device(config.device)
    optimizer = torch.optim.AdamW(
        parameter_groups(task.module, config.weight_decay),
        lr=config.lr,
        betas=(0.9, 0.99),
        fused=device.type == "cuda",
    )
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    # cuDNN's attention reads out of bounds in backward (torch 2.11, H100, bf16, 544 tokens); others do not.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Shapes repeat, so searching for the best kernel pays.
    torch.backends.cudnn.benchmark = device.type == "cuda"
    generator = torch.Generator(device).manual_seed(config.seed)
    average = Average(task.module, config.ema) if config.ema else None
    state = TrainState(task.module, optimizer, generator, [], average)
    if resume:
        state.restore(out)
        log.info("resuming %s at step %d of %d", task.name, state.step, config.steps)
    else:
        (out / FILE_NAME).unlink(missing_ok=True)
    autocast = torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()
    parameters = [p for p in task.module.parameters() if p.requires_grad]
    readings = Readings()

    def read() -> None:
        for report in readings.reports(state.step + 1, readings.numbers()):
            if not math.isfinite(report.loss):
                raise HywuError(
                    f"The loss became {report.loss} at step {report.step}; {state.last_good(out)}. "
                    f"Try a learning rate below {config.lr}."
                )
            if not math.isfinite(report.grad_norm):
                raise HywuError(
                    f"The gradient is not finite after step {report.step}; {state.last_good(out)}. "
                    f"Try a learning rate below {config.lr}."
                )
            state.losses.append(report.loss)
            if watch is not None:
                watch.on_step(report)

    # Ctrl-C inside an update would leave half of the weights moved and the random numbers already drawn.
    with deferred_interrupt() as interrupted, training_bar(task.name, config.steps, state.step) as bar:
        for step in range(state.step, config.steps):
            rate = config.learning_rate(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            losses, scalars = [], []
            for index in range(step * config.accumulate, (step + 1) * config.accumulate):
                batch = task.batch(config.micro_batch, generator, index)
                with autocast:
                    loss = task.loss(batch, generator)
                (loss / config.accumulate).backward()
                losses.append(loss.detach())
                scalars.append(task.scalars)
            norm = nn.utils.clip_grad_norm_(parameters, config.grad_clip)
            optimizer.step()
            if average is not None:
                average.update(step + 1)
            readings.add(rate, config.batch_size, _mean(losses), norm, _means(scalars))
            stop = interrupted.is_set() or step + 1 == config.steps
            due = stop or (step + 1) % config.checkpoint_every == 0
            if due or (step + 1) % _SYNC_EVERY == 0 or device.type == "cpu":
                read()
                recent = state.losses[-_BAR_SMOOTHING:]
                bar.set_postfix_str(f"loss {sum(recent) / len(recent):.4f}", refresh=False)
            bar.update()
            if due:
                state.save(out, run)
            if stop:
                break
    if average is not None:
        average.apply()
    return state.losses


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack([value.float() for value in values]).mean()


def _means(scalars: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: _mean(each[name] for each in scalars) for name in scalars[-1]}
