"""Numbers and words for learners beside each other.

Shapes: S seeds, P photographs, O operations.

`scores` are, for each measure, a table (S, P, O). Differences are taken case by case, so that what is hard
for all does not blur them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .frame import Result
from .quality import MEASURES
from .statistics import Interval, cell, crossed_interval, ends

Scores = Mapping[str, list]
HEADINGS = " | ".join(measure.label for measure in MEASURES.values())


def gathered(of_seeds: Sequence[Scores]) -> dict[str, list]:
    """Tables (P, O) of every seed as one (S, P, O)."""
    return {name: [scores[name] for scores in of_seeds] for name in MEASURES}


def means(scores: Scores, columns: Sequence[int] | None = None) -> dict[str, Interval]:
    """Each measure's mean over some operations, by default all."""
    which = slice(None) if columns is None else list(columns)
    return {name: crossed_interval(np.asarray(scores[name])[:, :, which]) for name in MEASURES}


def differences(scores: Scores, others: Scores) -> dict[str, Interval]:
    """How much more of each measure there is in `scores`."""
    return {name: crossed_interval(np.asarray(scores[name]) - np.asarray(others[name])) for name in MEASURES}


def by_seed(scores: Scores, measure: str = "psnr") -> list[float]:
    """Each seed's mean of a measure (S,)."""
    return np.asarray(scores[measure]).mean(axis=(1, 2)).round(3).tolist()


def averaged(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Key by key."""
    return {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}


def cells(values: Mapping[str, Interval]) -> str:
    """An interval of every measure, as cells of a table's row."""
    return " | ".join(cell(values[name], digits=measure.digits) for name, measure in MEASURES.items())


def gap(value: Interval, unit: str = " dB", digits: int = 2) -> str:
    """A difference in a sentence: "+1.20 dB [0.90, 1.50]"."""
    return f"{value['mean']:+.{digits}f}{unit} {ends(value, digits=digits)}"


def stands(value: Interval) -> str:
    """Where a difference puts the first of two, as far as its interval tells."""
    if value["low"] is None:  # of a single seed and photograph
        return "not told apart from"
    if value["low"] > 0:
        return "above"
    return "below" if value["high"] < 0 else "not told apart from"


def budget(records: Sequence[Mapping[str, Result]]) -> dict[str, object]:
    """What trainings took, and whether they took the same: {"steps", "samples", "equal"}.

    records: for each learner, its seeds' records. Equal are the steps and, seed by seed, the samples.
    """
    steps = sorted({record["steps"] for seeds in records for record in seeds})
    samples = sorted({sum(record["samples"]) for seeds in records for record in seeds})
    seen = [tuple(record["seen"] for record in seeds) for seeds in records]
    return {"steps": steps, "samples": samples, "equal": len(steps) == 1 and len(set(seen)) == 1}
