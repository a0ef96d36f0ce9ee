"""How the studies' figures look: readable in print, in grey and by the colour-blind.

Categories are in the palette of Okabe and Ito (https://jfly.uni-koeln.de/color/), never told by colour alone;
amounts are in cividis, amounts with a middle in PuOr, whose two ends differ for every usual colour blindness.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#B8A600")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
AMOUNTS, SIGNED = "cividis", "PuOr"
_DPI = 170
_SETTINGS = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "image.interpolation": "nearest",
}


@contextmanager
def sheet(path: Path, width: float = 7.2, height: float = 5.0) -> Iterator[Figure]:
    """A figure of so many inches (7.2 is a page's width) in the house style, saved as PNG at the end."""
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=_DPI)
    # A palette makes the file a third as large, and nobody sees the difference.
    few = Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, format="png", optimize=True)


def panel(axes: Axes, letter: str, title: str) -> Axes:
    """Give a panel its letter and its title."""
    axes.set_title(title, loc="left", pad=6)
    axes.annotate(
        letter,
        (0, 1),
        xycoords="axes fraction",
        xytext=(-14, 6),
        textcoords="offset points",
        fontsize=11,
        fontweight="bold",
        ha="right",
    )
    return axes
