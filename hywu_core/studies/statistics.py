"""The few statistics that studies share; scipy computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

Interval = dict[str, float]  # {"mean", "low", "high"}


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean and its 95% bootstrap interval (percentiles of 2000 resamplings)."""
    data = np.asarray(values, dtype=float)
    if len(data) < 2 or np.ptp(data) == 0:
        return {"mean": float(data.mean()), "low": float(data.mean()), "high": float(data.mean())}
    found = stats.bootstrap(
        (data,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    )
    low, high = found.confidence_interval
    return {"mean": float(data.mean()), "low": float(low), "high": float(high)}


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
    low, high = np.quantile(means, (0.025, 0.975))
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
    low, high = np.quantile(means, (0.025, 0.975))
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
    mean, low, high = (f"{value[key] * factor:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean}{unit} [{low}, {high}]"


def p_value(p: float) -> str:
    """A p-value for a sentence; the smallest ones are no number any more."""
    return f"{p:.1e}" if p > 0 else "≈ 0"


def crossed_interval(values: np.ndarray, rounds: int = 2000) -> Interval:
    """Mean of `values` (seeds, photographs, ...) and its 95% interval, where both are a draw from many.

    Seeds and photographs are resampled independently (the pigeonhole bootstrap, Owen 2007), everything else
    stays as it is: the statement is about these operations, on other trainings and other photographs. It is
    on the wide side, and with few photographs still narrower than it should be.
    """
    data = np.asarray(values, dtype=float)
    table = data.reshape(*data.shape[:2], -1).mean(axis=2)
    random, (seeds, photos) = np.random.default_rng(0), table.shape
    chosen_seeds = random.integers(seeds, size=(rounds, seeds, 1))
    chosen_photos = random.integers(photos, size=(rounds, 1, photos))
    means = table[chosen_seeds, chosen_photos].mean(axis=(1, 2))
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(table.mean()), "low": float(low), "high": float(high)}
