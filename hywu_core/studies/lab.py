"""Trainings that can be compared: the trainer's own code, on the same exact edits, with the same budget.

Shapes: P photographs, O operations, W wordings.

All learners of one seed see the same samples in the same order, in the same words, at the same noise levels
with the same noise: everything random in a training comes from one generator, and the same is drawn from it
whatever learns. A learning rate is chosen for each learner, on the training photographs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from ..conditions import Condition
from ..conditions.embedded import embedded_condition
from ..errors import HywuError
from ..lora import Adapter
from ..pipeline import HywuPipeline
from ..train.adapting import Edits
from ..train.config import TrainConfig
from ..train.hywu import HywuTask, HywuTrainingConfig
from ..train.loop import train
from ..train.world import EditCase, EmbeddedWorld, Judged, WorldConfig, held_out_cases, judge
from .frame import Result, StudyConfig, option
from .quality import MEASURES, quality
from .work import Work

Write = Callable[[Sequence[EditCase], Condition], Adapter]
_RATES = {"hywu": 2e-3, "shared_lora": 1e-2, "single_lora": 1e-2, "sft": 1e-3}  # where a search begins
_FACTOR, _MOST_RATES = 3.0, 5
_VALIDATION_BATCHES = 16
_VALIDATION_SEED, _SEARCH_SEED = 10_000, 20_000  # beyond the study's own, so that no seed serves twice


@dataclass(frozen=True)
class LabConfig(StudyConfig):
    """The budget that every learner gets, and how it is measured."""

    seeds: int = option(3, "trainings of each learner, with the seeds seed, seed + 1 ...", quick=2)
    size: int = option(64, "side of the square crops to learn from, in pixels")
    samples: int = option(128, "different samples of each operation", quick=16)
    steps: int = option(160, "steps of a training", quick=20)
    search_steps: int = option(40, "steps of each training that tries a learning rate; 0: no search", quick=0)
    batch: int = option(8, "rows of the backbone in a step")
    noise_levels: int = option(2, "of these rows, how many share a condition")
    rank: int = option(4, "of the LoRAs")
    d_model: int = option(128, "width of the generator")
    n_layers: int = option(2, "blocks of the generator")
    photos: int = option(4, "held-out photographs, at most", quick=2)
    wordings: int = option(1, "phrases that each edit is asked for in")
    sampling: int = option(8, "sampling steps of an edit")
    precision: str = option("fp32", "of training: fp32, tf32 or bf16")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive(
            *("seeds", "size", "samples", "steps", "batch", "noise_levels", "rank", "d_model", "n_layers"),
            *("photos", "wordings", "sampling"),
        )
        if self.search_steps < 0:
            raise HywuError(f"search_steps is {self.search_steps}; it must be at least 0 (no search).")
        self.training(self.seed, 1e-3, self.steps)

    def training(self, seed: int, lr: float, steps: int) -> TrainConfig:
        """The trainer's settings."""
        return TrainConfig(
            steps=steps,
            batch_size=self.batch,
            lr=lr,
            warmup=max(1, steps // 10),
            seed=seed,
            device=self.device,
            precision=self.precision,
            checkpoint_every=steps,
        )


@dataclass(frozen=True)
class Learner:
    """What learns: a kind of adaptation, and its size where it is not the study's."""

    name: str
    kind: str
    rank: int | None = None
    d_model: int | None = None
    n_layers: int | None = None
    segment: int = 0
    targets: tuple[str, ...] = ()


class CountedTask(HywuTask):
    """Counts what it is given to learn from."""

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        self.drawn = torch.zeros(len(self.config.operations), dtype=torch.long)
        self._seen = hashlib.sha256()

    def batch(self, size: int, generator: torch.Generator, index: int) -> Edits:
        """As in training."""
        edits = super().batch(size, generator, index)
        self.drawn += torch.bincount(edits.tasks.cpu(), minlength=len(self.drawn))
        for tensor in (edits.tasks, edits.target, edits.condition.tokens):
            self._seen.update(tensor.cpu().contiguous().numpy().data)
        return edits

    @property
    def seen(self) -> str:
        """A digest of all samples so far, in order: equal for trainings on equal samples."""
        return self._seen.hexdigest()[:16]


@dataclass(frozen=True)
class Trained:
    """A finished training; `record` is what it took, as plain data."""

    task: CountedTask
    record: Result

    def write(self, cases: Sequence[EditCase], condition: Condition) -> Adapter | None:
        """The adapter of some cases: one for each, one for all, or none where the backbone has learned."""
        tasks = [self.task.config.operations.index(case.operation) for case in cases]
        return self.task.adaptation.adapter(condition, torch.tensor(tasks, device=condition.device))


class Lab:
    """What the trainings of a study share, made when it is first needed: a resumed study may not."""

    def __init__(self, config: LabConfig, operations: Sequence[str]) -> None:
        self.config, self.operations = config, tuple(operations)
        self.device = config.computes_on

    @cached_property
    def world(self) -> EmbeddedWorld:
        """The exact edits of the training photographs, the same for all seeds."""
        size = (self.config.size, self.config.size)
        seen = WorldConfig(sizes=(size,), crops=self.config.samples, variants=1)
        return EmbeddedWorld(self.operations, seen, self.device, self.config.seed)

    @cached_property
    def cases(self) -> list[EditCase]:
        """Held-out photographs under every operation, asked for in words that were trained on.

        Photograph by photograph, operation by operation: (P * O * W).
        """
        area = self.config.size**2
        return held_out_cases(self.operations, self.config.wordings, self.config.photos, area, split="train")

    @property
    def seeds(self) -> range:
        """Of the trainings."""
        return range(self.config.seed, self.config.seed + self.config.seeds)

    @property
    def n_photos(self) -> int:
        """P."""
        return len({case.photo for case in self.cases})

    def task(self, learner: Learner, seed: int) -> CountedTask:
        """Before training."""
        config = HywuTrainingConfig(
            operations=self.operations,
            base_share=1.0,
            rank=learner.rank or self.config.rank,
            d_model=learner.d_model or self.config.d_model,
            n_layers=learner.n_layers or self.config.n_layers,
            noise_levels=self.config.noise_levels,
            adaptation=learner.kind,
            segment=learner.segment,
            targets=learner.targets,
        )
        return CountedTask(learner.name, config, self.world, self.device, seed)

    def train(self, learner: Learner, seed: int, lr: float, steps: int | None = None) -> Trained:
        """Train a learner from its start."""
        task = self.task(learner, seed)
        config = self.config.training(seed, lr, steps or self.config.steps)
        started = self._seconds()
        with TemporaryDirectory() as folder:
            losses = train(task, config, Path(folder), {"recipe": learner.name})
        record = {
            "seed": seed,
            "lr": lr,
            "steps": len(losses),
            "samples": task.drawn.tolist(),
            "seen": task.seen,
            "parameters": task.adaptation.n_parameters,
            "seconds": round(self._seconds() - started, 2),
            "first_loss": round(float(np.mean(losses[: len(losses) // 8 + 1])), 4),
            "last_loss": round(float(np.mean(losses[-(len(losses) // 8 + 1) :])), 4),
        }
        task.release()
        return Trained(task, record)

    def learn(
        self,
        learner: Learner,
        work: Work,
        measure: Callable[[Trained], Result],
        rate: Result | None = None,
        steps: int | None = None,
    ) -> tuple[Result, list[Result]]:
        """The learning rate, chosen if none is given, and `measure` of a training with each seed."""
        rate = rate or self.choose_rate(learner, work)
        return rate, [
            work.unit(
                learner.name,
                f"seed {seed}",
                make=lambda seed=seed: measure(self.train(learner, seed, rate["lr"], steps)),
            )
            for seed in self.seeds
        ]

    def choose_rate(self, learner: Learner, work: Work) -> Result:
        """The learning rate with the least loss on training photographs, with a worse one on either side.

        {"lr": the rate, "tried": [{"lr", "loss"}, ...] in ascending order}.
        """
        start = _RATES[learner.kind]
        if not self.config.search_steps:
            return {"lr": start, "tried": []}
        tried: dict[float, float] = {}
        wanted = {start, start / _FACTOR, start * _FACTOR}
        while wanted - tried.keys() and len(tried) < _MOST_RATES:
            for lr in sorted(wanted - tried.keys()):
                tried[lr] = work.unit(
                    "rate", learner.name, f"{lr:.1e}", make=lambda lr=lr: self._search_loss(learner, lr)
                )
            best = min(tried, key=tried.get)
            wanted = {_beyond(best, tried)} if best in (min(tried), max(tried)) else set()
        return {"lr": best, "tried": [{"lr": lr, "loss": tried[lr]} for lr in sorted(tried)]}

    @torch.no_grad()
    def _search_loss(self, learner: Learner, lr: float) -> float:
        """The loss on samples of the training photographs that are the same for every learner and rate."""
        with torch.enable_grad():
            seed = self.config.seed + _SEARCH_SEED
            task = self.train(learner, seed, lr, self.config.search_steps).task
        generator = torch.Generator(self.device).manual_seed(self.config.seed + _VALIDATION_SEED)
        losses = [
            float(task.loss(task.batch(2 * self.config.batch, generator, index), generator))
            for index in range(_VALIDATION_BATCHES)
        ]
        return float(np.mean(losses))

    def judge(
        self, pipeline: HywuPipeline, seed: int, write: Write | None, cases: Sequence[EditCase] | None = None
    ) -> list[Judged]:
        """Cases, by default all, edited with the adapters of `write`, or by the backbone as it is."""
        cases = self.cases if cases is None else cases
        return judge(
            *(pipeline, cases), frozen_base=write is None, write=write, steps=self.config.sampling, seed=seed
        )

    def base(self, seed: int, cases: Sequence[EditCase] | None = None) -> list[Judged]:
        """Cases, by default all, edited by the frozen backbone."""
        return self.judge(self.task(Learner("base", "shared_lora"), seed).pipeline(), seed, None, cases)

    def judge_trained(self, trained: Trained, cases: Sequence[EditCase] | None = None) -> list[Judged]:
        """Cases, by default all, edited with what was learned."""
        write = None if trained.task.config.adaptation == "sft" else trained.write
        return self.judge(trained.task.pipeline(), trained.record["seed"], write, cases)

    def conditions(self, pipeline: HywuPipeline) -> Condition:
        """The conditions of all cases (N, S, D)."""
        found = []
        for case in self.cases:
            latents = pipeline.autoencoder.encode(case.source[None].to(pipeline.device))
            found.append(embedded_condition(latents, pipeline.text_encoder.encode([case.prompt])))
        return Condition.stack(found)

    def scores(self, judged: Iterable[Judged]) -> Result:
        """Each measure's table (P, O), a mean over the wordings."""
        found = [quality(each.result, each.case.target) for each in judged]
        shape = (self.n_photos, len(self.operations), -1)
        return {
            name: np.reshape([each[name] for each in found], shape).mean(2).round(4).tolist()
            for name in MEASURES
        }

    def _seconds(self) -> float:
        """A clock: processor time on a CPU, which what else runs there does not change."""
        if self.device.type == "cpu":
            return time.process_time()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _beyond(lr: float, tried: Iterable[float]) -> float:
    """The next rate on the side where none was tried."""
    return lr * _FACTOR if lr == max(tried) else lr / _FACTOR
