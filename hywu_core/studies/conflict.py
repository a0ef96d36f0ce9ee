"""Conflict: opposite operations in one memory (paper 5.1, figure 8).

Four pairs of operations that want the contrary are learned together, by one shared LoRA, by a LoRA for each
operation, by the backbone itself and by a generator that writes a LoRA for every edit: with the same samples
and steps, again with as many trained parameters as the generator has, and again for longer.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..data.photo_ops import OPS
from ..images import save_sheet, to_pil, to_tensor
from ..train.world import EditCase, held_out_cases
from .compared import averaged, budget, by_seed, differences, gathered, means
from .conflict_shown import figure, report
from .frame import Result, Study, option
from .lab import Lab, LabConfig, Learner, Trained
from .misaligned import energy
from .work import Work

PAIRS = (
    ("restore", "age"),
    ("deblur", "blur"),
    ("lift_shadows", "crush_blacks"),
    ("green_tint", "magenta_tint"),
)
OPERATIONS = tuple(operation for pair in PAIRS for operation in pair)
LEARNERS = (
    Learner("Single LoRA", "single_lora"),
    Learner("Shared LoRA", "shared_lora"),
    Learner("SFT", "sft"),
    Learner("HY-WU", "hywu"),
)
SHEET = "edits.jpg"


@dataclass(frozen=True)
class ConflictConfig(LabConfig):
    """The budget, and how large the edits are that are shown."""

    longer: int = option(3, "so many times the steps for a second comparison; 1: none", quick=1)
    shown_size: int = option(128, "pixels, as the side of a square, of the edits on the sheet", quick=64)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("longer", "shown_size")


def run(config: ConflictConfig, work: Work) -> Result:
    """Train and measure; also writes the sheet of edits."""
    lab = Lab(config, OPERATIONS)
    shown = shown_cases(config)
    base = [
        work.unit("base", f"seed {s}", make=lambda s=s: _measured(lab, None, s, shown)) for s in lab.seeds
    ]
    rates: dict[str, Result] = {}
    units: dict[str, list[Result]] = {}

    def learn(learner: Learner, rate: Result | None = None, steps: int | None = None) -> None:
        rate, units[learner.name] = lab.learn(
            *(learner, work, lambda trained: _measured(lab, trained, trained.record["seed"], shown)),
            *(rate, steps),
        )
        rates[learner.name] = rate

    for learner in LEARNERS:
        learn(learner)
    large = matched(units, config.rank)
    for learner in large:
        learn(learner)
    tables = {
        "same samples and steps": _table([learner.name for learner in LEARNERS], units),
        "same trained parameters": _table([*(learner.name for learner in large), "HY-WU"], units),
    }
    last = LEARNERS
    if config.longer > 1:
        last = [replace(learner, name=f"{learner.name}, long") for learner in LEARNERS]
        for learner, short in zip(last, LEARNERS, strict=True):
            learn(learner, rates[short.name], config.longer * config.steps)
        tables[f"same samples and steps, {config.longer} times as many"] = _table(
            [learner.name for learner in last], units
        )
    edits = {"frozen base": base[0]} | {learner.name: units[learner.name][0] for learner in last}
    _save_sheet(shown, edits, work.out / SHEET)

    scores = {name: gathered([unit["scores"] for unit in of]) for name, of in units.items()}
    scores["base"] = gathered([unit["scores"] for unit in base])
    records = {name: [unit["record"] for unit in of] for name, of in units.items()}
    return {
        "pairs": [list(pair) for pair in PAIRS],
        "operations": list(OPERATIONS),
        "known_to_base": [operation for operation in OPERATIONS if OPS[operation].split == "base"],
        "photographs": lab.n_photos,
        "cases": len(lab.cases),
        "tables": tables,
        "budget": tables["same samples and steps"]["budget"],
        "rates": rates,
        "learners": {
            name: _learner(scores, name, records.get(name), large) for name in scores
        },
        "energy": {
            name: averaged([unit["energy"] for unit in of]) for name, of in units.items() if "energy" in of[0]
        },
    }  # fmt: skip


def matched(units: dict[str, list[Result]], rank: int) -> list[Learner]:
    """LoRAs, shared and single, of the ranks whose parameters are nearest to the generator's in number."""
    wanted = units["HY-WU"][0]["record"]["parameters"]
    found = []
    for name, kind in (("Shared LoRA", "shared_lora"), ("Single LoRA", "single_lora")):
        each = units[name][0]["record"]["parameters"] / rank
        fitting = max(1, round(wanted / each))
        found.append(Learner(f"{name} of rank {fitting}", kind, rank=fitting))
    return found


def shown_cases(config: ConflictConfig) -> list[EditCase]:
    """Each operation once, each pair on a photograph of its own while there are enough."""
    cases = held_out_cases(OPERATIONS, 1, config.photos, config.shown_size**2, split="train")
    photos = len({case.photo for case in cases})
    where = {operation: i % photos for i, pair in enumerate(PAIRS) for operation in pair}
    wanted = [case for case in cases if where[case.operation] == case.photo]
    return sorted(wanted, key=lambda case: OPERATIONS.index(case.operation))


def _measured(lab: Lab, trained: Trained | None, seed: int, shown: Sequence[EditCase]) -> Result:
    """Scores on the held-out photographs, what the training took, and the first seed's edits to show."""
    unit = {"scores": lab.scores(lab.judge_trained(trained) if trained else lab.base(seed))}
    if trained is not None:
        unit["record"] = trained.record
        if trained.task.config.adaptation == "hywu":
            with torch.no_grad():
                written = trained.write(lab.cases, lab.conditions(trained.task.pipeline()))
            unit["energy"] = energy(written, [case.operation for case in lab.cases])
    if seed == lab.config.seed:
        judged = lab.judge_trained(trained, shown) if trained else lab.base(seed, shown)
        unit["pictures"] = {each.case.operation: _as_text(each.result) for each in judged}
        unit["shown_psnr"] = {each.case.operation: round(each.score, 2) for each in judged}
    return unit


def _table(names: list[str], units: dict[str, list[Result]]) -> Result:
    """Who is compared, the last with the others, and what it took them."""
    return {
        "learners": names,
        "budget": budget([[unit["record"] for unit in units[name]] for name in names]),
    }


def _learner(
    scores: dict[str, Result], name: str, records: list[Result] | None, large: list[Learner]
) -> Result:
    own = "HY-WU, long" if name.endswith(", long") else "HY-WU"
    columns = {operation: [i] for i, operation in enumerate(OPERATIONS)}
    return {
        "mean": means(scores[name]),
        "by_seed": by_seed(scores[name]),
        "over_base": differences(scores[name], scores["base"]) if name != "base" else None,
        # HY-WU over the base is its own "over_base", of each training length another.
        "hywu_over_it": differences(scores[own], scores[name]) if name not in (own, "base") else None,
        "by_operation": {operation: means(scores[name], column) for operation, column in columns.items()},
        "rank": next((learner.rank for learner in large if learner.name == name), None),
        "seconds": averaged([{"seconds": each["seconds"]} for each in records])["seconds"]
        if records
        else None,
        "records": records,
        "scores": scores[name],
    }


def _save_sheet(shown: Sequence[EditCase], units: dict[str, Result], path: Path) -> None:
    """The edits in the order of the paper's figure 8, a row for each operation."""
    rows = []
    for case in shown:
        pictures = [_from_text(unit["pictures"][case.operation]) for unit in units.values()]
        told = ", ".join(f"{name} {unit['shown_psnr'][case.operation]:.1f}" for name, unit in units.items())
        rows.append((f"{case.prompt}   (dB: {told})", (case.source, *pictures, case.target)))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_sheet(rows, ("source", *units, "exact result"), path)


def _as_text(image: Tensor) -> str:
    """A picture (3, H, W) in [0, 1] as PNG in base 64: parts are JSON."""
    file = io.BytesIO()
    to_pil(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _from_text(text: str) -> Tensor:
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return to_tensor(image)[0]


STUDY = Study(ConflictConfig, run, report, figure)
