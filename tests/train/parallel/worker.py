"""What the processes of `test_parallel.py` do, job after job: `torchrun ... worker.py JOBS.json OUT`.

A job is {"do": name of a function here, "name": its folder in OUT, ...its arguments}.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from hywu_core.cli import command
from hywu_core.train.loop import train
from hywu_core.train.parallel import Parallel, ParallelConfig
from hywu_core.train.processes import one_speaks
from tests.train.parallel.tiny import CONFIG, RUN, Tiny, TinyFlux


def first_gradients(task, parallel, config) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and every gradient of the first step, whole."""
    parallel.apply(task, config)
    generator, losses = torch.Generator().manual_seed(config.seed), []
    for index in range(config.accumulate):
        loss = task.loss(task.batch(config.micro_batch, generator, index), generator)
        (loss / config.accumulate).backward()
        losses.append(loss.detach())
    parallel.average_gradients(task.module.parameters())
    found = {name: p.grad for name, p in task.module.named_parameters()}
    whole = {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in found.items()}
    return float(parallel.mean(torch.stack(losses).mean())), whole


def size(module) -> float:
    """One number for all weights."""
    return sum(float(p.detach().double().abs().sum()) for p in module.parameters())


class Told:
    """A watch that remembers."""

    def __init__(self) -> None:
        self.reports, self.shown = [], []

    def on_step(self, report) -> None:
        self.reports.append([report.step, report.loss, report.grad_norm, report.rows, report.scalars["rows"]])

    def on_show(self, step, shown) -> None:
        self.shown.append([step, shown.scalars["power"]])

    def work(self, rows):
        return nullcontext()


def steps(folder: Path, arrangement: dict, settings: dict, task: str = "Tiny") -> None:
    """Gradients of the first step, then a whole run."""
    make = {"Tiny": Tiny, "TinyFlux": TinyFlux}[task]
    if task == "TinyFlux":  # diffusers asks which accelerator is a process's own, and does not use it
        torch.accelerator.device_count = lambda: 1
    parallel, config = Parallel(ParallelConfig(**arrangement)), replace(CONFIG, **settings)
    loss, gradients = first_gradients(make(), parallel, config)
    if parallel.main:
        (folder / "run").mkdir(parents=True)
        save_file({n: g.contiguous() for n, g in gradients.items()}, folder / "gradients.safetensors")
    parallel.barrier()
    task, told = make(), Told()
    losses = train(task, config, folder / "run", RUN, parallel=parallel, watch=told)
    if parallel.main:
        task.attachment.remove()
        out = task.predict(torch.ones(2, 6)).tolist()  # whole again: nobody else calls
        weights = {n: w.detach().contiguous() for n, w in task.module.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")
        tell(folder, loss=loss, losses=losses, reports=told.reports, out=out, shown=told.shown)


def stopped(folder: Path, by: str, arrangement: dict) -> None:
    """A run in which the last process alone meets Ctrl-C, or a loss that is no number, at its third step."""
    parallel = Parallel(ParallelConfig(**arrangement))
    if parallel.main:
        (folder / "run").mkdir(parents=True)
    parallel.barrier()

    def act(step: int) -> float:
        if step == 3 and parallel.rank == parallel.world - 1:
            if by == "nan":
                return math.nan
            signal.raise_signal(signal.SIGINT if by == "ctrl-c" else signal.SIGTERM)
        return 1.0

    try:
        train(Tiny(act), CONFIG, folder / "run", RUN, parallel=parallel)
        said = "nothing"
    except (KeyboardInterrupt, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
    tell(folder, parallel.rank, said=said)


def resumed(folder: Path, source: str, arrangement: dict, n: int) -> None:
    """Continue the run of another job."""
    parallel = Parallel(ParallelConfig(**arrangement))
    config, task = replace(CONFIG, steps=n, ema=0.9), Tiny()
    losses = train(task, config, folder.parent / source / "run", RUN, True, parallel)
    if parallel.main:
        folder.mkdir()
        tell(folder, losses=losses, exported=size(task.module))


def killed(folder: Path, at: int, n: int) -> None:
    """A run whose first process is killed in the middle of step `at`; must be the last job."""
    parallel = Parallel(ParallelConfig())
    if parallel.main:
        (folder / "run").mkdir(parents=True)
    parallel.barrier()

    def act(step: int) -> float:
        if step == at and parallel.main:
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0

    train(Tiny(act), replace(CONFIG, steps=n, ema=0.9), folder / "run", RUN, parallel=parallel)


def tell(folder: Path, rank: int = 0, **plain) -> None:
    (folder / f"told-{rank}.json").write_text(json.dumps(plain))


JOBS = {function.__name__: function for function in (steps, stopped, resumed, killed)}


def main() -> int:
    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    with one_speaks(), Parallel.joined(ParallelConfig(), "cpu"):
        for job in jobs:
            JOBS[job.pop("do")](out / job.pop("name"), **job)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
