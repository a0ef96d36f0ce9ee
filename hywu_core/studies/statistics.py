"""The few statistics that studies share; scipy computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

# {"mean", "low", "high"}; without ends where one value says nothing of others.
Interval = dict[str, float | None]
INTERVALS = "Student's t"  # what a result says of itself; older ones have bootstrap percentiles
_CONFIDENCE = 0.95


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean and its 95% interval by Student's t; percentiles of few values' resamplings are too near."""
    data = np.asarray(values, dtype=float)
    if len(data) < 2:
        return {"mean": float(data.mean()), "low": None, "high": None}
    return _student(float(data.mean()), [data.var(ddof=1) / len(data)], [len(data) - 1])


def _student(mean: float, variances: Sequence[float], degrees: Sequence[int]) -> Interval:
    """An interval whose variance is a sum of some, each estimated with so many degrees of freedom.

    What they come to together is Satterthwaite's (1946).
    """
    found = np.asarray(variances, dtype=float)
    if not found.any():
        return {"mean": mean, "low": mean, "high": mean}
    freedom = found.sum() ** 2 / (found**2 / np.asarray(degrees)).sum()
    reach = float(stats.t.ppf((1 + _CONFIDENCE) / 2, freedom) * found.sum() ** 0.5)
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def _tails(count: int) -> tuple[float, float]:
    """The quantiles of resampled means that are the ends of a 95% interval over `count` things.

    Resamplings vary too little by n - 1 in n, and the normal distribution forgets that the spread is itself
    estimated; further out both are made good (Hesterberg 2015, "expanded percentile").
    """
    reach = stats.t.ppf((1 + _CONFIDENCE) / 2, count - 1) * (count / (count - 1)) ** 0.5
    return float(stats.norm.cdf(-reach)), float(stats.norm.cdf(reach))


def clustered_interval(values: Sequence[float], clusters: Sequence, rounds: int = 2000) -> Interval:
    """Mean of `values` and its 95% interval, where those of one cluster stand or fall together.

    Whole clusters are drawn, as many as there are, with replacement. Within a single one its values are.
    """
    data, of = np.asarray(values, dtype=float), np.unique(list(clusters), return_inverse=True)[1]
    sizes = np.bincount(of)
    if len(sizes) < 2:
        return interval(data)
    drawn = np.random.default_rng(0).integers(len(sizes), size=(rounds, len(sizes)))
    means = np.bincount(of, data)[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, _tails(len(sizes)))
    return {"mean": float(data.mean()), "low": float(low), "high": float(high)}


def pair_interval(values: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], rounds: int = 2000) -> Interval:
    """Mean of `values` (P,) of pairs of things, two index arrays (P,), and its 95% interval over the things.

    A thing in many pairs moves them all, so that things are drawn with replacement, and a pair counts as
    often as both of its own together (Snijders and Borgatti 1999). Pairs that share nothing, and a thing
    with itself, are as many independent values.
    """
    ends = np.stack(pairs)
    if (ends[0] == ends[1]).all() or np.bincount(ends.ravel()).max() == 1:
        return interval(values)
    count = ends.max() + 1
    present = np.unique(ends)
    drawn = np.zeros((rounds, count))
    drawn[:, present] = np.random.default_rng(0).multinomial(
        len(present), np.full(len(present), 1 / len(present)), size=rounds
    )
    weights = drawn[:, ends[0]] * drawn[:, ends[1]]
    some = weights.sum(axis=1) > 0
    means = (weights[some] @ values) / weights[some].sum(axis=1)
    low, high = np.quantile(means, _tails(len(present)))
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}


def more_often_larger(values: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """The common-language effect size and its p-value (Mann-Whitney U, two-sided).

    `effect` is the probability that a random one of `values` is larger than a random one of `others`, ties
    counting half: 0.5 is no difference, 1 is all of them.
    """
    found = stats.mannwhitneyu(values, others)
    return {"effect": float(found.statistic / (len(values) * len(others))), "p": float(found.pvalue)}


def chance_agreement(
    labels: Sequence, others: Sequence, score: Callable[..., float], resamples: int, seed: int
) -> tuple[float, float]:
    """A score of how well two labellings agree, and the share of random pairings that agree as well."""
    found = stats.permutation_test(
        (labels, others),
        score,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return float(found.statistic), float(found.pvalue)


def cell(value: Interval, factor: float = 1.0, unit: str = "", digits: int = 1) -> str:
    """An interval for a table: "25.0% [20.1, 29.8]"."""
    return f"{value['mean'] * factor:.{digits}f}{unit} {ends(value, factor, digits)}"


def ends(value: Interval, factor: float = 1.0, digits: int = 1) -> str:
    """The ends alone: "[20.1, 29.8]"."""
    if value["low"] is None:
        return "[one value]"
    return f"[{value['low'] * factor:.{digits}f}, {value['high'] * factor:.{digits}f}]"


def intervals_told(result: Mapping[str, object]) -> str:
    """What a result's intervals of independent values are, for "95% ..."."""
    return f"intervals ({INTERVALS})" if result.get("intervals") == INTERVALS else "bootstrap intervals"


def p_value(p: float) -> str:
    """A p-value for a sentence; the smallest ones are no number any more."""
    return f"{p:.1e}" if p > 0 else "≈ 0"


def crossed_interval(values: np.ndarray) -> Interval:
    """Mean of `values` (seeds, photographs, ...) and its 95% interval, where both are a draw from many.

    Everything else stays as it is: the statement is about these operations, on other trainings and other
    photographs. By Student's t, with the variances of the means of the seeds and of the photographs added up:
    of 3 seeds and 4 photographs it holds the truth in 94 to 99 of 100 cases, of 2 seeds in 90 or more. A
    single seed, or photograph, is taken as given, as nothing tells how others would differ.
    """
    data = np.asarray(values, dtype=float)
    table = data.reshape(*data.shape[:2], -1).mean(axis=2)
    sides = [table.mean(axis=1), table.mean(axis=0)]
    drawn = [side for side in sides if len(side) > 1]
    if not drawn:
        return interval(table.ravel())
    return _student(
        float(table.mean()),
        [side.var(ddof=1) / len(side) for side in drawn],
        [len(side) - 1 for side in drawn],
    )
