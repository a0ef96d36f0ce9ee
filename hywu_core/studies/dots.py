"""Means with their intervals, drawn as dots with whiskers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from .statistics import Interval


def dots(
    axes: Axes,
    at: Sequence[float] | np.ndarray,
    values: Sequence[Interval],
    color: str,
    marker: str,
    *,
    label: str | None = None,
    line: str = "none",
    sideways: bool = False,
) -> None:
    """Values over places, or with `sideways` places over values."""
    mean = np.array([value["mean"] for value in values])
    reach = np.abs(np.array([[_end(value, end) for value in values] for end in ("low", "high")]) - mean)
    style = {"color": color, "marker": marker, "linestyle": line, "label": label}
    style |= {"capsize": 1.5, "markersize": 4, "linewidth": 0.9}
    if sideways:
        axes.errorbar(mean, at, xerr=reach, **style)
    else:
        axes.errorbar(at, mean, yerr=reach, **style)


def _end(value: Interval, end: str) -> float:
    """Of a single value, which has no interval, the value."""
    return value["mean"] if value[end] is None else value[end]
