"""Scaling: what a larger generator, more rank, shorter tokens and more adapted linears bring, and cost.

(Paper 4.4, and R3 of its roadmap.) Every setting is trained from its start with the same samples and steps.
From one setting in the middle, one thing is changed at a time; depth and width of the generator make a grid.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from time import process_time
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..backbones.embedded import EmbeddedBackbone
from ..conditions import Condition
from ..conditions.embedded import CONDITION_DIM
from ..errors import HywuError
from ..generator import ParameterGenerator
from ..lora import LoraSpec
from ..tokens import TokenLayout
from ..tokens.layout import n_tokens
from ..train.hywu import HywuTrainingConfig
from ..train.plan_trace import Ledger
from .compared import budget, by_seed, differences, gathered, means
from .frame import Result, Study, option
from .lab import Lab, LabConfig, Learner, Trained
from .scaling_shown import figure, report
from .work import Work

# The base has seen none of them.
OPERATIONS = ("darken", "cool", "white_vignette", "darken_bottom")
RANKS = (4, 16, 64)
SEGMENTS = (64, 128, 0)  # 0: the largest there is
TARGETS = {
    "late blocks": ("single_transformer_blocks.[23].*",),
    "attention": ("*.attn.*",),
    "single blocks": ("single_transformer_blocks.*",),
    "all": (),
}
CONDITION_TOKENS = 49  # of an embedded condition: 17 of the photograph, 32 of the words
_ROUNDS = 7  # of timing


@dataclass(frozen=True)
class ScalingConfig(LabConfig):
    """The budget; rank, width and depth are those of the setting in the middle."""

    seed: int = option(200, "of all that is drawn at random")
    seeds: int = option(2, "trainings of each setting, with the seeds seed, seed + 1 ...", quick=1)
    steps: int = option(80, "steps of a training", quick=4)
    noise_levels: int = option(4, "of the rows of a step, how many share a condition")
    search_steps: int = option(0, "steps of each training that tries a learning rate; 0: the default for all")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_model % 32:  # half of it is divided among four heads
            raise HywuError(f"d_model is {self.d_model}; half of it is tried too, so it must divide by 32.")


def axes_of(config: ScalingConfig) -> dict[str, list[tuple[Any, Learner]]]:
    """Of every axis, its values and what learns there; the learner in the middle is on all of them."""

    def middle_but(**changed: Any) -> Learner:
        middle = Learner("", "hywu", config.rank, config.d_model, config.n_layers)
        learner = replace(middle, **changed)
        name = f"width {learner.d_model}, depth {learner.n_layers}, rank {learner.rank}"
        cut = f", segment {learner.segment}" if learner.segment else ""
        where = next(
            f", {name}" if learner.targets else "" for name, t in TARGETS.items() if t == learner.targets
        )
        return replace(learner, name=name + cut + where)

    widths = (config.d_model // 2, config.d_model, 2 * config.d_model)
    return {
        "size": [([n, d], middle_but(n_layers=n, d_model=d)) for n in (1, 2, 4) for d in widths],
        "rank": [(rank, middle_but(rank=rank)) for rank in sorted({config.rank, *RANKS})],
        "segment": [(cut or whole_segment(), middle_but(segment=cut)) for cut in SEGMENTS],
        "linears": [(name, middle_but(targets=targets)) for name, targets in TARGETS.items()],
    }


def run(config: ScalingConfig, work: Work) -> Result:
    """Train, measure, and count."""
    lab = Lab(config, OPERATIONS)
    axes = axes_of(config)
    learners = {learner.name: learner for points in axes.values() for _, learner in points}
    base = [
        work.unit("base", f"seed {s}", make=lambda s=s: {"scores": lab.scores(lab.base(s))})
        for s in lab.seeds
    ]
    of_base = gathered([unit["scores"] for unit in base])
    costs = work.unit("costs", make=lambda: costs_of(learners.values()))
    found, rates = {}, {}
    for name, learner in learners.items():
        rates[name], units = lab.learn(learner, work, partial(_learned, lab))
        scores = gathered([unit["scores"] for unit in units])
        records = [unit["record"] for unit in units]
        found[name] = costs[name] | {
            "step_milliseconds": float(np.mean([1000 * r["seconds"] / r["steps"] for r in records])),
            "mean": means(scores),
            "over_base": differences(scores, of_base),
            "by_seed": by_seed(scores),
            "records": records,
            "scores": scores,
        }
    return {
        "operations": list(OPERATIONS),
        "photographs": lab.n_photos,
        "cases": len(lab.cases),
        "axes": {
            axis: [{"value": value, "setting": learner.name} for value, learner in points]
            for axis, points in axes.items()
        },
        "budget": budget([part["records"] for part in found.values()]),
        "rates": rates,
        "base": {"mean": means(of_base), "by_seed": by_seed(of_base), "scores": of_base},
        "settings": found,
    }


def _learned(lab: Lab, trained: Trained) -> Result:
    return {"record": trained.record, "scores": lab.scores(lab.judge_trained(trained))}


def whole_segment() -> int:
    """The segment that is taken where none is asked for."""
    spec = LoraSpec.from_module(EmbeddedBackbone.load().transformer, rank=1)
    return TokenLayout.for_spec(spec).segment


@torch.no_grad()
def costs_of(learners: Iterable[Learner]) -> dict[str, Result]:
    """What writing one LoRA costs in each setting: numbers, operations, and seconds, all in turn on the CPU.

    Operations are those of matrix products, a multiplication and an addition counting two.
    """
    transformer = EmbeddedBackbone.load().transformer
    generators = {learner.name: _generator(learner, transformer) for learner in learners}
    condition = Condition(
        torch.randn(1, CONDITION_TOKENS, CONDITION_DIM, generator=torch.Generator().manual_seed(0))
    )
    costs, times = {}, {name: [] for name in generators}
    for name, generator in generators.items():
        generator(condition)  # once for what is kept between calls
        with Ledger() as counted:  # torch's own counter knows nothing of attention on a CPU
            generator(condition)
        layout, spec = generator.layout, generator.spec
        costs[name] = {
            "trained_parameters": generator.n_parameters,
            "generated_parameters": spec.n_parameters,
            "tokens": sum(band.n_layers * sum(n_tokens(band, layout, spec.rank)) for band in spec.bands),
            "gflop": counted.flop / 1e9,
        }
    for _ in tqdm(range(_ROUNDS), desc="timing generators in turn", unit="round"):
        for name, generator in generators.items():
            started = process_time()
            generator(condition)
            times[name].append(process_time() - started)
    return {
        name: cost | {"milliseconds": 1000 * statistics.median(times[name])} for name, cost in costs.items()
    }


def _generator(learner: Learner, transformer: torch.nn.Module) -> ParameterGenerator:
    """As it is trained, at its start."""
    spec = LoraSpec.from_module(transformer, learner.targets or None, rank=learner.rank, alpha=learner.rank)
    sizes = HywuTrainingConfig(d_model=learner.d_model, n_layers=learner.n_layers)
    layout = TokenLayout.for_spec(spec, learner.segment or None)
    return ParameterGenerator(sizes.generator(CONDITION_DIM), spec, layout).eval()


STUDY = Study(ScalingConfig, run, report, figure)
