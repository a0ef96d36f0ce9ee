"""Cosines between the gradients of operations: matrices, clusters, and what can be said of them all.

Shapes: O operations, n draws, D dimensions.

A pair of operations has n x n cosines. Those of one draw (same crop, time and noise) are left out of the
means, as an operation with itself has none, and stand apart as "matched".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from tqdm import tqdm

from ..data.photo_ops import OPS
from .frame import Result
from .statistics import chance_agreement, interval, more_often_larger, pair_interval

FALSE_DISCOVERIES = 0.05  # of the pairs that are called conflicting or aligned
_BINS = 40
_DEALT = 9999  # times that operations are dealt out anew


def analyse(names: Sequence[str], taken: Sequence[dict[str, Tensor]], clusters: int, seed: int) -> Result:
    """All about the gradients at one point; `taken` has, by operation, "unit" (n, D), "norm" and "loss"."""
    units = [part["unit"].float().numpy() for part in taken]
    pairs = _Pairs(units)
    labels, order = cluster(pairs.mean, clusters, seed)
    families = [OPS[name].family for name in names]
    upper = np.triu_indices(len(names), 1)
    return {
        "mean_cosine": lower_triangle(pairs.mean),
        "low": lower_triangle(pairs.low),
        "high": lower_triangle(pairs.high),
        "conflict_ratio": lower_triangle(pairs.conflict),
        "clusters": labels.tolist(),
        "order": order.tolist(),
        "clusters_are_families": _agreement(labels, families, seed),
        "pairs": {
            "between": _summary(pairs, upper),
            "within": _summary(pairs, np.diag_indices(len(names))),
            "opposite": _summary(pairs, _opposites(names)),
            "same family": _summary(pairs, _where(upper, families, True)),
            "other family": _summary(pairs, _where(upper, families, False)),
            "same cluster": _summary(pairs, _where(upper, labels, True)),
            "other cluster": _summary(pairs, _where(upper, labels, False)),
        },
        "opposite_against_other": opposite_against_other(pairs.mean, names, seed),
        "called": _called(pairs, upper),
        "examples": _examples(pairs, units, names),
        "operations": [
            {
                "name": name,
                "within": pairs.interval_of(i, i),
                "norm": interval(part["norm"].numpy()),
                "loss": interval(part["loss"].numpy()),
            }
            for i, (name, part) in enumerate(zip(names, taken, strict=True))
        ],
    }


class _Pairs:
    """(O, O) matrices over pairs of operations, computed block by block of n x n cosines."""

    def __init__(self, units: Sequence[np.ndarray]) -> None:
        count = len(units)
        self.mean, self.low, self.high, self.conflict, self.matched, self.p = np.zeros((6, count, count))
        for i in tqdm(range(count), desc="comparing operations", unit="operation"):
            for j in range(i, count):
                block = units[i] @ units[j].T
                part = draw_parts(block)
                found = interval(part)
                self._set("mean", i, j, found["mean"])
                self._set("low", i, j, found["low"])
                self._set("high", i, j, found["high"])
                self._set("conflict", i, j, negative_share(block))
                self._set("matched", i, j, float(np.trace(block)) / len(block))
                self._set("p", i, j, float(stats.ttest_1samp(part, 0.0).pvalue))

    def _set(self, name: str, i: int, j: int, value: float) -> None:
        matrix = getattr(self, name)
        matrix[i, j] = matrix[j, i] = value

    def interval_of(self, i: int, j: int) -> Result:
        """Mean cosine of a pair and its interval."""
        return {key: float(getattr(self, key)[i, j]) for key in ("mean", "low", "high")}


def lower_triangle(matrix: np.ndarray) -> list[list[float]]:
    """A symmetric (O, O) matrix for JSON: row i is its first i + 1 numbers, to four digits."""
    return [row[: i + 1].round(4).tolist() for i, row in enumerate(matrix)]


def square(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """The symmetric (O, O) matrix of a `lower_triangle`."""
    matrix = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        matrix[i, : i + 1] = matrix[: i + 1, i] = row
    return matrix


def off_diagonal(block: np.ndarray) -> np.ndarray:
    """The cosines (n * (n - 1),) of different draws."""
    return block[~np.eye(len(block), dtype=bool)]


def negative_share(block: np.ndarray) -> float:
    """The conflict ratio: the share of cosines, of different draws, that are negative."""
    return float((off_diagonal(block) < 0).mean())


def draw_parts(block: np.ndarray) -> np.ndarray:
    """What every draw contributes to the mean cosine of different draws (n,); their mean is that mean.

    The projection of a U-statistic on single draws (Hoeffding 1948): a draw stands in a row and in a column
    of the block, so that the n * (n - 1) cosines are not as many independent ones. Resampling these n parts
    is the bootstrap over draws.
    """
    n = len(block)
    diagonal = np.diagonal(block)
    rows, columns = ((block.sum(axis) - diagonal) / (n - 1) for axis in (1, 0))
    return rows + columns - off_diagonal(block).mean()


def cluster(mean_cosine: np.ndarray, clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Spectral clusters (O,) and an order (O,) that puts them side by side, the most coherent first.

    The affinity of two operations is their mean cosine over the geometric mean of those within each (the
    cosine of their expected gradients), where it is positive.
    """
    within = np.sqrt(np.clip(np.diagonal(mean_cosine), 1e-6, None))
    affinity = np.clip(mean_cosine / np.outer(within, within), 1e-3, 1.0)
    np.fill_diagonal(affinity, 1.0)
    found = SpectralClustering(
        clusters, affinity="precomputed", random_state=seed, assign_labels="cluster_qr"
    )
    raw = found.fit_predict(affinity)
    coherence = {label: mean_cosine[np.ix_(raw == label, raw == label)].mean() for label in np.unique(raw)}
    rank = {label: place for place, label in enumerate(sorted(coherence, key=coherence.get, reverse=True))}
    labels = np.array([rank[label] for label in raw])
    typical = np.array([mean_cosine[i, labels == labels[i]].mean() for i in range(len(labels))])
    return labels, np.lexsort((-typical, labels))


def _summary(pairs: _Pairs, where: tuple[np.ndarray, np.ndarray]) -> Result:
    if not len(where[0]):
        return {"pairs": 0}
    found = {"mean_cosine": pairs.mean, "conflict_ratio": pairs.conflict, "matched_cosine": pairs.matched}
    if (where[0] == where[1]).all():
        del found["matched_cosine"]  # of a draw with itself it is 1
    counted = {"pairs": len(where[0]), "resampled": "operations"}
    return counted | {key: pair_interval(matrix[where], where) for key, matrix in found.items()}


def _where(
    upper: tuple[np.ndarray, np.ndarray], labels: Sequence, same: bool
) -> tuple[np.ndarray, np.ndarray]:
    labels = np.asarray(labels)
    keep = (labels[upper[0]] == labels[upper[1]]) == same
    return upper[0][keep], upper[1][keep]


def _opposites(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of operations that ask for the contrary of each other."""
    found = [
        (i, names.index(other))
        for i, name in enumerate(names)
        if (other := OPS[name].opposite) in names and names.index(other) > i
    ]
    return tuple(np.array(found, dtype=int).reshape(-1, 2).T)


def opposite_against_other(mean_cosine: np.ndarray, names: Sequence[str], seed: int) -> Result | None:
    """Opposite pairs against all others of the same family: does being opposite make for conflict?

    mean_cosine (O, O). The p-value, two-sided, is of operations dealt out anew within their families: pairs
    that share an operation are not independent, and to exchange pairs would take them for it.
    """
    families = np.array([OPS[name].family for name in names])
    opposite = _opposites(names)
    known = set(zip(*opposite, strict=True))
    within = _where(np.triu_indices(len(names), 1), families, True)
    same = known | set(zip(*within, strict=True))
    others = np.array(sorted(same - known), dtype=int).reshape(-1, 2).T
    if len(opposite[0]) < 2 or len(others[0]) < 2:
        return None

    def difference(places: np.ndarray) -> float:
        means = (mean_cosine[places[a], places[b]].mean() for a, b in (opposite, others))
        return float(next(means) - next(means))

    members = [np.flatnonzero(families == family) for family in np.unique(families)]
    rng = np.random.default_rng(seed)
    chance = np.zeros(_DEALT)
    for round_ in range(_DEALT):
        places = np.arange(len(names))
        for mine in members:
            places[mine] = rng.permutation(mine)
        chance[round_] = difference(places)
    found = difference(np.arange(len(names)))
    further = np.abs(chance - chance.mean()) >= abs(found - chance.mean()) - 1e-12
    groups = [mean_cosine[tuple(which)] for which in (opposite, others)]
    return {
        "difference": found,
        "p": float((further.sum() + 1) / (_DEALT + 1)),
        "permuted": "operations",
        "effect": more_often_larger(*groups)["effect"],
        "pairs": [len(group) for group in groups],
    }


def _called(pairs: _Pairs, upper: tuple[np.ndarray, np.ndarray]) -> Result:
    """How many pairs conflict, or align, beyond chance (Benjamini and Hochberg over all pairs)."""
    sure = stats.false_discovery_control(np.nan_to_num(pairs.p[upper], nan=1.0)) < FALSE_DISCOVERIES
    mean = pairs.mean[upper]
    return {
        "false_discoveries": FALSE_DISCOVERIES,
        "pairs": len(mean),
        "conflicting": float((sure & (mean < 0)).mean()),
        "aligned": float((sure & (mean > 0)).mean()),
        "more_negative_than_positive": float((pairs.conflict[upper] > 0.5).mean()),
    }


def _agreement(labels: np.ndarray, families: Sequence[str], seed: int) -> Result:
    """Whether the clusters are the families that the operations were sorted into by hand."""
    numbers = np.unique(families, return_inverse=True)[1]
    index, p = chance_agreement(labels, numbers, adjusted_rand_score, 1999, seed)
    return {"adjusted_rand_index": index, "p": p}


def _examples(pairs: _Pairs, units: Sequence[np.ndarray], names: Sequence[str]) -> list[Result]:
    """Histograms of the cosines of the most conflicting pair, the most unrelated one and the most similar."""
    upper = np.triu_indices(len(names), 1)
    mean = pairs.mean[upper]
    chosen = (
        ("conflicting", mean.argmin()),
        ("unrelated", np.abs(mean).argmin()),
        ("similar", mean.argmax()),
    )
    found = []
    for kind, place in chosen:
        i, j = int(upper[0][place]), int(upper[1][place])
        block = units[i] @ units[j].T
        values = off_diagonal(block)
        reach = float(np.abs(values).max())
        counts, edges = np.histogram(values, bins=_BINS, range=(-reach, reach))
        found.append(
            {
                "kind": kind,
                "pair": [names[i], names[j]],
                "mean_cosine": pairs.interval_of(i, j),
                "conflict_ratio": negative_share(block),
                "matched_cosine": float(pairs.matched[i, j]),
                "edges": edges.round(4).tolist(),
                "counts": counts.tolist(),
            }
        )
    return found
