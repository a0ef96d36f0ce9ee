"""Alignment: is it the right LoRA for this input that helps, or just a LoRA? (paper 5.3, table 7)

The generator's LoRAs as they are, averaged, and given to the wrong inputs, beside the frozen base, one shared
LoRA and fine-tuning. Controls take the alignment apart: by the operation, and by the photograph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..errors import HywuError
from ..generator import ParameterGenerator
from ..lora import Adapter
from ..lora.algebra import average, truncate_rank
from ..pipeline import HywuPipeline
from .alignment_shown import figure, report
from .compared import averaged, budget, by_seed, differences, gathered, means, stands
from .frame import OfGenerator, Result, Study, option
from .lab import Lab, LabConfig, Learner, Trained
from .misaligned import (
    derangement,
    energy,
    given,
    mean_factors,
    means_of_others,
    others_of_a_kind,
    without_mean,
)
from .work import Work

# The base has seen none of them.
OPERATIONS = ("darken", "cool", "green_tint", "magenta_tint", "white_vignette", "darken_bottom")
LEARNERS = (Learner("Shared LoRA", "shared_lora"), Learner("SFT", "sft"), Learner("PG", "hywu"))
TABLE = ("base", "Shared LoRA", "SFT", "Average PG", "Shuffle PG", "PG")  # in the order of table 7
CONTROLS = (
    "Average PG of the LoRAs' rank",
    "means of A and of B",
    "PG less Average PG",
    "shuffled within the operation",
    "averaged within the operation",
)


@dataclass(frozen=True)
class AlignmentConfig(OfGenerator, LabConfig):
    """The budget; with seeds that the other studies do not use."""

    seed: int = option(100, "of all that is drawn at random")
    steps: int = option(240, "steps of a training", quick=20)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.photos < 2:
            raise HywuError(f"photos is {self.photos}; LoRAs are exchanged between at least 2 photographs.")


def run(config: AlignmentConfig, work: Work) -> Result:
    """Train and measure."""
    lab = Lab(config, OPERATIONS)
    shipped = work.unit("shipped generator", make=lambda: _shipped(lab))
    found = {
        "base": [
            work.unit("base", f"seed {s}", make=lambda s=s: {"scores": lab.scores(lab.base(s))})
            for s in lab.seeds
        ]
    }
    rates = {}
    for learner in LEARNERS:
        measure = _generated if learner.kind == "hywu" else _learned
        rates[learner.name], found[learner.name] = lab.learn(learner, work, partial(measure, lab))
    records = {name: [unit["record"] for unit in units] for name, units in found.items() if name != "base"}
    scores = {name: gathered([unit["scores"] for unit in units]) for name, units in found.items()}
    scores |= {
        name: gathered([unit["variants"][name] for unit in found["PG"]]) for name in shipped["variants"]
    }
    return {
        "operations": list(OPERATIONS),
        "photographs": lab.n_photos,
        "cases": len(lab.cases),
        "table": list(TABLE),
        "controls": list(CONTROLS),
        "budget": budget(list(records.values())),
        "rates": rates,
        "records": records,
        "energy": [unit["energy"] for unit in found["PG"]],
        "mean_energy": averaged([unit["energy"] for unit in found["PG"]]),
        "variants": _compared(scores, (*TABLE, *CONTROLS)),
        "shuffle_over_average": differences(scores["Shuffle PG"], scores["Average PG"]),
        "claims": claims(scores),
        "shipped": _compared_shipped(shipped),
    }


def _compared_shipped(found: Result) -> Result:
    """The one generator's numbers, with intervals over photographs alone."""
    scores = {name: gathered([table]) for name, table in found["variants"].items()}
    scores |= {"base": gathered([found["base"]]), "PG": gathered([found["scores"]])}
    names = [name for name in (*TABLE, *CONTROLS) if name in scores]
    return {
        "provenance": found["provenance"],
        "energy": found["energy"],
        "variants": _compared(scores, names),
        "claims": claims(scores),
    }


def _compared(scores: dict[str, Result], names: Sequence[str]) -> Result:
    return {
        name: {
            "mean": means(scores[name]),
            "by_seed": by_seed(scores[name]),
            "over_base": differences(scores[name], scores["base"]),
            "pg_over_it": differences(scores["PG"], scores[name]),
            "scores": scores[name],
        }
        for name in names
    }


def claims(scores: dict[str, Result]) -> list[Result]:
    """What the paper's table leads one to expect of whom there are scores, and whether it holds, by PSNR."""
    wanted = (
        ("PG", "base", ("above",)),
        ("PG", "Shared LoRA", ("above",)),
        ("Shared LoRA", "base", ("above",)),
        ("Average PG", "base", ("below", "not told apart from")),
        ("Shuffle PG", "base", ("below", "not told apart from")),
    )
    found = []
    for name, other, expected in wanted:
        if name not in scores or other not in scores:
            continue
        difference = differences(scores[name], scores[other])["psnr"]
        stand = stands(difference)
        found.append(
            {
                "of": name,
                "than": other,
                "expected": list(expected),
                "found": stand,
                "holds": stand in expected,
                "difference": difference,
            }
        )
    return found


def _learned(lab: Lab, trained: Trained) -> Result:
    return {"record": trained.record, "scores": lab.scores(lab.judge_trained(trained))}


def _generated(lab: Lab, trained: Trained) -> Result:
    return {"record": trained.record} | out_of_place(
        lab, trained.task.pipeline(), trained.task.adaptation.module, trained.record["seed"]
    )


def _shipped(lab: Lab) -> Result:
    """The same of a generator that was trained for long, on all operations at once."""
    pipeline = HywuPipeline.from_embedded(lab.config.generator, lab.device)
    seed = lab.config.seed
    found = out_of_place(lab, pipeline, pipeline.generator, seed)
    return found | {
        "base": lab.scores(lab.judge(pipeline, seed, None)),
        "provenance": dict(pipeline.generator.provenance),
    }


@torch.no_grad()
def out_of_place(lab: Lab, pipeline: HywuPipeline, generator: ParameterGenerator, seed: int) -> Result:
    """Scores of a generator's LoRAs where they belong and, as "variants", out of place; their energy."""
    cases = lab.cases
    written = generator(lab.conditions(pipeline))
    operations, photos = [case.operation for case in cases], [case.photo for case in cases]
    random = torch.Generator().manual_seed(seed)
    others = others_of_a_kind(operations, photos)
    mean = average(written)
    variants: dict[str, Callable[[], Adapter]] = {
        "PG": lambda: written,
        "Average PG": lambda: mean,
        "Shuffle PG": lambda: written.select(derangement(operations, random)),
        "Average PG of the LoRAs' rank": lambda: truncate_rank(mean, written.rank),
        "means of A and of B": lambda: mean_factors(written),
        "PG less Average PG": lambda: without_mean(written),
        "shuffled within the operation": lambda: written.select([same[0] for same in others]),
        "averaged within the operation": lambda: means_of_others(written, others),
    }
    scores = {
        name: lab.scores(lab.judge(pipeline, seed, given(cases, adapter())))
        for name, adapter in variants.items()
    }
    return {"scores": scores.pop("PG"), "energy": energy(written, operations), "variants": scores}


STUDY = Study(AlignmentConfig, run, report, figure)
