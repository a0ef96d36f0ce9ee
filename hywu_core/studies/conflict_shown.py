"""Report and figure of the conflict study; the edits themselves are a sheet, as the paper's figure 8."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .compared import HEADINGS, cells, gap, stands
from .dots import dots
from .frame import Result
from .quality import MEASURES
from .style import MARKERS, PALETTE, panel, sheet
from .told import budget_told, rates_told, several

_ORDER = ("base", "Single LoRA", "Shared LoRA", "SFT", "HY-WU")  # of the paper's figure 8


def report(result: Result) -> str:
    """The result as a page whose every number comes from it."""
    learners = result["learners"]
    pairs = "; ".join(f"{a} against {b}" for a, b in result["pairs"])
    lines = [
        "# Conflict",
        "",
        f"Pairs of operations that want the contrary, learned together: {pairs}. The base was pretrained on "
        f"{' and '.join(result['known_to_base'])}; the others are new to it.",
        "",
        budget_told(result),
    ]
    for title, table in result["tables"].items():
        budget = table["budget"]
        equal = "the same" if budget["equal"] else "NOT the same"
        took = f"{several(budget['steps'])} steps, {several(budget['samples'])} edits, {equal} for all."
        lines += ["", f"## The {title}", "", took, "", *_table(learners, ["base", *table["learners"]])]
    lines += ["", *_sentences(result), "", "## By operation", "", *_by_operation(result)]
    lines += ["", "## Learning rates", "", *rates_told(result)]
    lines += ["", "The edits themselves, in the order of the paper's figure 8: [edits.jpg](edits.jpg)."]
    return "\n".join(lines) + "\n"


def _table(learners: Result, names: list[str]) -> list[str]:
    lines = [
        f"| | trained parameters | seconds of a training | {HEADINGS} | over the base, dB "
        "| HY-WU over it, dB |",
        "|---|" + "---|" * (len(MEASURES) + 4),
    ]
    own = names[-1]
    for name in names:
        part = learners[name]
        # There is one base for all tables; its difference from this one's HY-WU is noted with the latter.
        over_it = learners[own]["over_base"] if name == "base" else part["hywu_over_it"]
        took = ("", "")
        if part["records"]:
            took = (f"{part['records'][0]['parameters']:,}", f"{part['seconds']:.0f}")
        gaps = [gap(each["psnr"], "") if each else "" for each in (part["over_base"], over_it)]
        lines.append(f"| {name} | {took[0]} | {took[1]} | {cells(part['mean'])} | {gaps[0]} | {gaps[1]} |")
    return lines


def _sentences(result: Result) -> list[str]:
    """What the tables say, in words that follow from the intervals."""
    learners = result["learners"]
    said = []
    for title, table in result["tables"].items():
        *others, own = table["learners"]
        found = "; ".join(
            f"{stands(learners[name]['hywu_over_it']['psnr'])} {name} "
            f"({gap(learners[name]['hywu_over_it']['psnr'])})"
            for name in others
        )
        said.append(f"With the {title}, {own} is {found}.")
    spread = "; ".join(
        f"{name} {', '.join(f'{mean:.1f}' for mean in learners[name]['by_seed'])}" for name in learners
    )
    for name, energy in result["energy"].items():
        said.append(
            f"Of the mean squared norm of the LoRAs of {name}, {100 * energy['common']:.0f}% is common to "
            f"all and {100 * energy['kind']:.0f}% tells operations apart."
        )
    return [" ".join(said), "", f"Mean PSNR of each seed, dB: {spread}."]


def _by_operation(result: Result) -> list[str]:
    learners = result["learners"]
    names = list(learners)
    lines = ["| PSNR, dB | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for pair in result["pairs"]:
        for operation in pair:
            values = [learners[name]["by_operation"][operation]["psnr"]["mean"] for name in names]
            shown = [f"**{v:.1f}**" if v == max(values) else f"{v:.1f}" for v in values]
            lines.append(f"| {operation} | " + " | ".join(shown) + " |")
    return lines


def figure(result: Result, path: Path) -> None:
    """PSNR of every operation, pair by pair; what each learner adds to the base, by every measure."""
    learners = result["learners"]
    names = [
        *_ORDER[:-1],
        *(name for name in learners if name not in _ORDER and ", long" not in name),
        "HY-WU",
    ]
    looks = dict(zip([*_ORDER, *names[4:-1]], zip(PALETTE, MARKERS, strict=True), strict=False))
    long = [name for name in learners if ", long" in name]
    looks |= {name: looks[name.removesuffix(", long")] for name in long}
    with sheet(path, 7.2, 5.8 + 0.2 * len(long)) as drawing:
        grid = drawing.add_gridspec(2, len(MEASURES), height_ratios=(1.5, 1))
        whole = panel(drawing.add_subplot(grid[0, :]), "a", "every operation, on held-out photographs")
        operations = [operation for pair in result["pairs"] for operation in pair]
        for row, name in enumerate(names):
            values = [learners[name]["by_operation"][operation]["psnr"] for operation in operations]
            offset = (row - (len(names) - 1) / 2) * 0.11
            dots(whole, np.arange(len(operations)) + offset, values, *looks[name], label=name)
        for boundary in range(2, len(operations), 2):
            whole.axvline(boundary - 0.5, color="0.8", linewidth=0.6)
        whole.set_xticks(range(len(operations)), [name.replace("_", " ") for name in operations])
        whole.set_ylabel("PSNR to the exact result, dB")
        whole.legend(ncols=min(4, len(names)), loc="lower center", bbox_to_anchor=(0.5, 1.08))
        learned = [*names[1:], *long]
        for column, (key, measure) in enumerate(MEASURES.items()):
            better = "more" if measure.more_is_better else "less"
            axes = panel(
                drawing.add_subplot(grid[1, column]),
                "bcd"[column],
                f"{measure.label}, over base ({better})",
            )
            axes.axvline(0, color="0.6", linewidth=0.6)
            for row, name in enumerate(learned):
                dots(axes, [-row], [learners[name]["over_base"][key]], *looks[name], sideways=True)
            axes.set_yticks(
                [-row for row in range(len(learned))], learned if column == 0 else [""] * len(learned)
            )
