"""What a person watches: a bar with an estimate of the time left, and a loss curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..storage import atomic_path


def training_bar(name: str, total: int, initial: int = 0, shown: bool = True) -> tqdm:
    """A progress bar on standard error with rate and ETA."""
    return tqdm(
        total=total,
        initial=initial,
        desc=name,
        unit="step",
        dynamic_ncols=True,
        smoothing=0.1,
        disable=not shown,
    )


def save_loss_curve(losses: Sequence[float], path: Path, title: str) -> None:
    """The loss of every step, faint, and its running mean, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    window = max(1, len(losses) // 50)
    running = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(range(1, len(losses) + 1), losses, color="0.8", linewidth=0.8, label="each step")
    axes.plot(range(window, len(losses) + 1), running, color="C0", label=f"mean of {window}")
    axes.set(xlabel="step", ylabel="loss", title=title, yscale="log")
    axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
