"""Whether LoRAs that lie close together are of similar pictures and words (paper 5.4).

Shapes: N points, D dimensions, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

from .frame import Result
from .statistics import chance_agreement, interval, more_often_larger

Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of rows and other rows, by index


def semantic_embeddings(text: np.ndarray, image: np.ndarray) -> dict[str, np.ndarray]:
    """Words and picture side by side, standardised and each with the same say; and either alone."""
    words, picture = (StandardScaler().fit_transform(x) / x.shape[1] ** 0.5 for x in (text, image))
    return {"words and picture": np.hstack([words, picture]), "words": words, "picture": picture}


def clusters_of(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """K-means labels (N,), the largest cluster being number 0."""
    labels = KMeans(clusters, n_init=10, random_state=seed).fit_predict(points)
    order = np.argsort(-np.bincount(labels, minlength=clusters), kind="stable")
    return np.argsort(order)[labels]


def cosine_of(features: np.ndarray) -> Similarity:
    """Cosine similarity of standardised features (N, D)."""
    unit = normalize(StandardScaler().fit_transform(features))
    return lambda rows, others: (unit[rows] * unit[others]).sum(-1)


def equality_of(labels: Sequence) -> Similarity:
    """1 where two points have the same label."""
    labels = np.asarray(labels)
    return lambda rows, others: (labels[rows] == labels[others]).astype(float)


def compare(
    points: np.ndarray, similarity: Similarity, k: int, seed: int, within: Sequence | None = None
) -> Result:
    """Similarity of every point to its k nearest against k random others.

    within: labels; neighbours and others are then sought among points of the same label only. The p-value is
    Wilcoxon's signed-rank test over points, of the mean similarity to the near against that to the random.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros(len(points)) if within is None else np.asarray(within)
    anchors, near, far = [], [], []
    for label in np.unique(labels):
        group = np.flatnonzero(labels == label)
        if len(group) <= k + 1:
            continue
        found = NearestNeighbors(n_neighbors=k + 1).fit(points[group]).kneighbors(return_distance=False)
        anchors.append(group)
        near.append(group[found[:, :k]])
        # k others, drawn without the point itself: its own place is skipped.
        draws = np.array([rng.choice(len(group) - 1, k, replace=False) for _ in group])
        far.append(group[draws + (draws >= np.arange(len(group))[:, None])])
    if not anchors:
        return {"points": 0}
    rows = np.concatenate(anchors)[:, None]
    nearest, random = (similarity(rows, np.concatenate(others)) for others in (near, far))
    a, b = nearest.mean(1), random.mean(1)
    different = not np.allclose(a, b)
    return {
        "points": len(rows),
        "nearest": interval(a),
        "random": interval(b),
        "difference": interval(a - b),
        "effect": more_often_larger(nearest.ravel(), random.ravel())["effect"],
        "p": float(stats.wilcoxon(a, b).pvalue) if different else 1.0,
    }


def agreement(points: np.ndarray, labels: np.ndarray, seed: int) -> Result:
    """How well clusters of points are the clusters `labels`, and whether by chance."""
    own = clusters_of(points, len(np.unique(labels)), seed)
    information, p = chance_agreement(own, labels, adjusted_mutual_info_score, 199, seed)
    return {"adjusted_mutual_information": information, "p": p}


def retrieval(points: np.ndarray, others: np.ndarray, labels: Sequence, other_labels: Sequence) -> Result:
    """How often the nearest of `others` to a point, by cosine about each set's own mean, has its label."""
    points, others = points - points.mean(0), others - others.mean(0)
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(others)
    found = nearest.kneighbors(points, return_distance=False)[:, 0]
    right = np.asarray(labels) == np.asarray(other_labels)[found]
    chance = np.mean([np.mean(np.asarray(other_labels) == label) for label in labels])
    test = stats.binomtest(int(right.sum()), len(right), float(chance), alternative="greater")
    return {"right": interval(right), "chance": float(chance), "p": float(test.pvalue)}
