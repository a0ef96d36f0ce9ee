"""The one training loop: every recipe is a `Task`, the loop moves its weights."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import resolve_device
from ..errors import HywuError
from .checkpoint import FILE_NAME, TrainState
from .config import TrainConfig
from .interrupt import deferred_interrupt
from .progress import training_bar

log = logging.getLogger("hywu")
_BAR_SMOOTHING = 50  # steps over which the shown loss is averaged
_SYNC_EVERY = 20  # steps between reading losses back: a GPU must not wait for the CPU at every step


class Task(ABC):
    """What is trained, on what, and what it leaves behind."""

    name: str
    module: nn.Module  # holds exactly what is trained and what a checkpoint keeps

    @abstractmethod
    def batch(self, size: int, generator: torch.Generator) -> Any:
        """A fresh random batch, computed in full precision; all randomness comes from `generator`."""

    @abstractmethod
    def loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """The scalar loss of a batch, computed under the run's precision."""

    @abstractmethod
    def finish(self, out: Path) -> str:
        """Export the result into the run folder, measure it, and say in a sentence what was reached."""


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Decay matrices only: norms, biases and embeddings of one row have no scale to bound."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def train(
    task: Task, config: TrainConfig, out: Path, run: dict[str, object], resume: bool = False
) -> list[float]:
    """Train `task` to `config.steps`, checkpointing into `out`; returns the loss of every step.

    Ctrl-C ends the step, writes a checkpoint and raises KeyboardInterrupt; a loss or a weight that is not
    finite stops the run with HywuError and leaves the last good checkpoint. A checkpoint that a finished run
    left in `out` is removed first, unless this run continues from it.
    """
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
    state = TrainState(task.module, optimizer, generator, [])
    if resume:
        state.restore(out)
        log.info("resuming %s at step %d of %d", task.name, state.step, config.steps)
    else:
        (out / FILE_NAME).unlink(missing_ok=True)
    autocast = torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()
    parameters = [p for p in task.module.parameters() if p.requires_grad]
    unread: list[Tensor] = []

    def read_losses() -> None:
        losses = torch.stack(unread).tolist() if unread else []
        unread.clear()
        for loss in losses:
            if not math.isfinite(loss):
                raise HywuError(
                    f"The loss became {loss} at step {state.step + 1}; {state.last_good(out)}. "
                    f"Try a learning rate below {config.lr}."
                )
            state.losses.append(loss)

    # Ctrl-C inside an update would leave half of the weights moved and the random numbers already drawn.
    with deferred_interrupt() as interrupted, training_bar(task.name, config.steps, state.step) as bar:
        for step in range(state.step, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate(step)
            batch = task.batch(config.batch_size, generator)
            with autocast:
                loss = task.loss(batch, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.grad_clip)
            optimizer.step()
            unread.append(loss.detach().float())
            stop = interrupted.is_set() or step + 1 == config.steps
            due = stop or (step + 1) % config.checkpoint_every == 0
            if due or (step + 1) % _SYNC_EVERY == 0 or device.type == "cpu":
                read_losses()
                recent = state.losses[-_BAR_SMOOTHING:]
                bar.set_postfix_str(f"loss {sum(recent) / len(recent):.4f}", refresh=False)
            bar.update()
            if due:
                state.save(out, run)
            if stop:
                break
    return state.losses
