"""Report and figure of the conflict study; the edits themselves are a sheet, as the paper's figure 8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from .compared import HEADINGS, cells, gap, stands
from .frame import Result
from .quality import MEASURES
from .style import MARKERS, PALETTE, panel, sheet

_ORDER = ("base", "Single LoRA", "Shared LoRA", "SFT", "HY-WU")  # of the paper's figure 8


def report(result: Result) -> str:
    """The result as a page whose every number comes from it."""
    config, learners, budget = result["config"], result["learners"], result["budget"]
    pairs = "; ".join(f"{a} against {b}" for a, b in result["pairs"])
    equal = "the same" if budget["equal"] else "NOT the same"
    lines = [
        "# Conflict",
        "",
        f"Four pairs of operations that want the contrary, learned together: {pairs}. There are "
        f"{config['samples']} different samples of each operation, crops of {config['size']} pixels of the "
        f"training photographs; a training takes {_several(budget['steps'])} steps and draws "
        f"{_several(budget['samples'])} edits, {equal} for all learners of a seed. {config['seeds']} seeds.",
        "",
        f"Measured on {result['photographs']} held-out photographs, {result['cases']} edits a training, "
        f"against the exact result, {config['sampling']} sampling steps, in wordings that were trained on. "
        "Brackets are 95% bootstrap intervals over seeds and photographs; differences are taken edit by "
        "edit. PSNR and SSIM: more is better; FLIP: less.",
    ]
    for title, names in result["tables"].items():
        lines += ["", f"## The {title}", "", *_table(learners, ["base", *names])]
    lines += ["", *_sentences(result), "", "## By operation", "", *_by_operation(result)]
    lines += ["", "## Learning rates", "", *_rates(result)]
    lines += ["", "The edits themselves, in the order of the paper's figure 8: [edits.jpg](edits.jpg)."]
    return "\n".join(lines) + "\n"


def _several(values: list[int]) -> str:
    return " or ".join(f"{value:,}" for value in values)


def _table(learners: Result, names: list[str]) -> list[str]:
    lines = [
        f"| | trained parameters | processor seconds | {HEADINGS} | over the base, dB | HY-WU over it, dB |",
        "|---|" + "---|" * (len(MEASURES) + 4),
    ]
    for name in names:
        part = learners[name]
        took = ("", "")
        if part["records"]:
            seconds = np.mean([record["seconds"] for record in part["records"]])
            took = (f"{part['records'][0]['parameters']:,}", f"{seconds:.0f}")
        gaps = [gap(part[key]["psnr"], "") if part[key] else "" for key in ("over_base", "hywu_over_it")]
        lines.append(f"| {name} | {took[0]} | {took[1]} | {cells(part['mean'])} | {gaps[0]} | {gaps[1]} |")
    return lines


def _sentences(result: Result) -> list[str]:
    """What the tables say, in words that follow from the intervals."""
    learners = result["learners"]
    said = []
    for title, names in result["tables"].items():
        others = [name for name in names if name != "HY-WU"]
        found = "; ".join(
            f"{stands(learners[name]['hywu_over_it']['psnr'])} {name} "
            f"({gap(learners[name]['hywu_over_it']['psnr'])})"
            for name in others
        )
        said.append(f"With the {title}, HY-WU is {found}.")
    spread = ", ".join(
        f"{name} {' '.join(f'{mean:.1f}' for mean in learners[name]['by_seed'])}" for name in learners
    )
    return [" ".join(said), "", f"Mean PSNR of each seed, dB: {spread}."]


def _by_operation(result: Result) -> list[str]:
    learners = result["learners"]
    names = list(learners)
    lines = ["| PSNR, dB | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for pair in result["pairs"]:
        for operation in pair:
            values = [learners[name]["by_operation"][operation]["psnr"]["mean"] for name in names]
            best = max(values)
            shown = [f"**{v:.1f}**" if v == best else f"{v:.1f}" for v in values]
            lines.append(f"| {operation} | " + " | ".join(shown) + " |")
    return lines


def _rates(result: Result) -> list[str]:
    """The search for each learner's rate."""
    if not result["config"]["search_steps"]:
        defaults = ", ".join(f"{name} {rate['lr']:g}" for name, rate in result["rates"].items())
        return [f"None were searched for; each kind has a default: {defaults}."]
    lines = [
        f"Tried for {result['config']['search_steps']} steps each with another seed; chosen by the loss on "
        "samples of the training photographs, the same for all.",
        "",
        "| | chosen | loss at each rate tried |",
        "|---|---|---|",
    ]
    for name, rate in result["rates"].items():
        tried = ", ".join(f"{each['lr']:.2g}: {each['loss']:.4f}" for each in rate["tried"])
        lines.append(f"| {name} | {rate['lr']:.2g} | {tried} |")
    return lines


def figure(result: Result, path: Path) -> None:
    """The quality of every operation, pair by pair, and the mean of each measure, in figure 8's order."""
    learners = result["learners"]
    large = [name for names in result["tables"].values() for name in names if name not in _ORDER]
    names = [*_ORDER[:-1], *large, _ORDER[-1]]
    looks = dict(zip([*_ORDER, *large], zip(PALETTE, MARKERS, strict=True), strict=False))
    with sheet(path, 7.2, 5.6) as drawing:
        grid = drawing.add_gridspec(2, len(MEASURES), height_ratios=(1.5, 1))
        whole = drawing.add_subplot(grid[0, :])
        panel(whole, "a", "every operation, on held-out photographs")
        operations = [operation for pair in result["pairs"] for operation in pair]
        for row, name in enumerate(names):
            color, marker = looks[name]
            values = [learners[name]["by_operation"][operation]["psnr"] for operation in operations]
            offset = (row - (len(names) - 1) / 2) * 0.11
            _dots(whole, np.arange(len(operations)) + offset, values, color, marker, name)
        for boundary in range(2, len(operations), 2):
            whole.axvline(boundary - 0.5, color="0.8", linewidth=0.6)
        whole.set_xticks(range(len(operations)), [name.replace("_", " ") for name in operations])
        whole.set_ylabel("PSNR to the exact result, dB")
        whole.legend(ncols=min(4, len(names)), loc="lower center", bbox_to_anchor=(0.5, 1.08))
        for column, (key, measure) in enumerate(MEASURES.items()):
            axes = drawing.add_subplot(grid[1, column])
            better = "more" if measure.more_is_better else "less"
            panel(axes, "bcd"[column], f"{measure.label} ({better} is better)")
            for row, name in enumerate(names):
                color, marker = looks[name]
                value = learners[name]["mean"][key]
                axes.errorbar(
                    value["mean"], -row, xerr=_bars([value]), color=color, marker=marker, capsize=2, ms=4
                )
            axes.set_yticks([-row for row in range(len(names))], names if column == 0 else [""] * len(names))


def _bars(values: list[Result]) -> np.ndarray:
    """What errorbar wants: (2, n) distances to the ends of intervals."""
    return np.array([[v["mean"] - v["low"] for v in values], [v["high"] - v["mean"] for v in values]])


def _dots(axes: Axes, at: np.ndarray, values: list[Result], color: str, marker: str, label: str) -> None:
    axes.errorbar(
        at,
        [v["mean"] for v in values],
        yerr=_bars(values),
        color=color,
        marker=marker,
        linestyle="none",
        capsize=1.5,
        markersize=4,
        linewidth=0.8,
        label=label,
    )
