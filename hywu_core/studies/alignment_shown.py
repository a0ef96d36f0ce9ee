"""Report and figure of the alignment study, in the order of the paper's table 7."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from .compared import HEADINGS, cells, gap
from .dots import dots
from .frame import Result
from .quality import MEASURES
from .style import MARKERS, PALETTE, panel, sheet
from .told import budget_told, rates_told

_WHAT = {
    "Average PG": "the mean of the LoRAs of all edits measured, exactly as an update, for every input",
    "Shuffle PG": "to every input the LoRA of another one, with another operation",
    "Average PG of the LoRAs' rank": "the same mean, in the best approximation of one LoRA's rank",
    "means of A and of B": "the factors averaged, not the updates",
    "PG less Average PG": "each LoRA without what all have in common",
    "shuffled within the operation": "the LoRA of another photograph, for the same operation",
    "averaged within the operation": "the mean of those of all other photographs, for the same operation",
}


def report(result: Result) -> str:
    """The result as a page whose every number comes from it."""
    variants = result["variants"]
    lines = [
        "# Alignment",
        "",
        f"Operations that the base has never seen: {', '.join(result['operations'])}. {budget_told(result)}",
        "",
        *_head(),
        *[_row(name, variants[name]) for name in result["table"]],
        "",
        "Average PG is " + _WHAT["Average PG"] + "; Shuffle PG gives " + _WHAT["Shuffle PG"] + ".",
        "",
        *_claims(result["claims"]),
        "",
        "## What it is that aligns",
        "",
        *_head(),
        *[_row(name, variants[name], _WHAT[name]) for name in result["controls"]],
        "",
        *_why(result),
        "",
        "## Learning rates",
        "",
        *rates_told(result),
    ]
    return "\n".join(lines) + "\n"


def _head() -> list[str]:
    return [
        f"| | PSNR of each seed, dB | {HEADINGS} | over the base, dB | PG over it, dB |",
        "|---|" + "---|" * (len(MEASURES) + 3),
    ]


def _row(name: str, part: Result, what: str = "") -> str:
    said = f"{name}: {what}" if what else name
    seeds = ", ".join(f"{mean:.1f}" for mean in part["by_seed"])
    own = name == "PG"
    gaps = ["" if name == "base" else gap(part["over_base"]["psnr"], "")]
    gaps.append("" if own else gap(part["pg_over_it"]["psnr"], ""))
    return f"| {said} | {seeds} | {cells(part['mean'])} | {gaps[0]} | {gaps[1]} |"


def _claims(claims: list[Result]) -> list[str]:
    """What the paper finds, one by one, and whether it is so here."""
    lines = []
    for claim in claims:
        expected = " or ".join(claim["expected"])
        verdict = "holds" if claim["holds"] else "does NOT hold"
        lines.append(
            f"* {claim['of']} is expected {expected} {claim['than']}: it is {claim['found']} it "
            f"({gap(claim['difference'])}). This {verdict}."
        )
    return lines


def _why(result: Result) -> list[str]:
    """What the controls, and a generator that was trained for long, say about the table."""
    variants, shipped = result["variants"], result["shipped"]
    lines = [f"{_energy_told('these generators', result['mean_energy'])} {_costs_told(variants)}"]
    failed = {claim["of"] for claim in result["claims"] if not claim["holds"]}
    if "Average PG" in failed:
        lines += [
            "",
            "Average PG is better than the base here because of what all LoRAs have in common: it is "
            f"{gap(variants['Average PG']['over_base']['psnr'])} over the base by itself, the same for every "
            "operation, and each LoRA without it is "
            f"{gap(variants['PG less Average PG']['over_base']['psnr'])} over the base.",
        ]
    if "Shuffle PG" in failed:
        lines += [
            "",
            "Shuffle PG is better than the base because every LoRA brings along what is common to all; what "
            "it brings of the wrong operation changes Average PG by "
            f"{gap(result['shuffle_over_average']['psnr'])}.",
        ]
    return [
        *lines,
        "",
        f"## The {_finished(result)}",
        "",
        f"The same LoRAs out of place, of a generator{_OF_SHIPPED if _is_shipped(result) else ''}; "
        "the base and PG beside them. Intervals are over photographs.",
        "",
        *_head(),
        *[_row(name, part) for name, part in shipped["variants"].items()],
        "",
        *_claims(shipped["claims"]),
        "",
        f"{_energy_told('this generator', shipped['energy'])} {_costs_told(shipped['variants'])}",
    ]


_OF_SHIPPED = " that was trained on all operations, on many more edits (its card says how)"


def _is_shipped(result: Result) -> bool:
    return result["config"]["generator"] is None


def _finished(result: Result) -> str:
    """The generator that was not trained here, by its name."""
    return (
        "shipped generator"
        if _is_shipped(result)
        else f"generator {Path(result['config']['generator']).name}"
    )


def _label(result: Result) -> str:
    return "shipped" if _is_shipped(result) else "finished"


def _energy_told(whose: str, energy: Result) -> str:
    shares = {name: 100 * share for name, share in energy.items()}
    return (
        f"Of the mean squared norm of the LoRAs of {whose}, {shares['common']:.0f}% is common to all, "
        f"{shares['kind']:.0f}% tells the operations apart and {shares['instance']:.0f}% the edits of one "
        "operation."
    )


def _costs_told(variants: Result) -> str:
    costs = {name: gap(part["pg_over_it"]["psnr"]) for name, part in variants.items()}
    return (
        "PG is "
        f"{costs['shuffled within the operation']} over another photograph's LoRA, of the same operation, "
        f"{costs['averaged within the operation']} over the mean of the other photographs', and "
        f"{costs['Shuffle PG']} over another operation's."
    )


def figure(result: Result, path: Path) -> None:
    """Table 7 as a picture, trained here and as shipped; the controls; what the LoRAs are made of."""
    here, shipped = result["variants"], result["shipped"]["variants"]
    looks = {name: (PALETTE[i], MARKERS[i]) for i, name in enumerate(result["table"])}
    table = [name for name in result["table"] if name != "base"]
    with sheet(path, 7.2, 5.4) as drawing:
        panels = drawing.subplots(2, 2, height_ratios=(1, 1.1))
        a = panel(panels[0, 0], "a", "as table 7, trained here: over the base")
        _rows(a, here, table, looks)
        b = panel(panels[0, 1], "b", f"the {_finished(result)}: over the base")
        _rows(b, shipped, [name for name in table if name in shipped], looks)
        c = panel(panels[1, 0], "c", "controls: over the base")
        names = [*result["controls"], "PG"]
        for which, marker, color in ((here, "o", PALETTE[0]), (shipped, "D", PALETTE[5])):
            shift = 0.12 if which is here else -0.12
            values = [which[name]["over_base"]["psnr"] for name in names]
            label = "trained here" if which is here else _label(result)
            dots(c, shift - np.arange(len(names)), values, color, marker, label=label, sideways=True)
        c.set_yticks(-np.arange(len(names)), [_WHERE.get(name, name) for name in names])
        c.legend(loc="best")
        for axes in (a, b, c):
            axes.axvline(0, color="0.6", linewidth=0.6)
            axes.set_xlabel("PSNR, dB: mean and 95% interval")
        _energy_bars(panel(panels[1, 1], "d", "what the LoRAs' squared norm is"), result)


_WHERE = {
    "Average PG of the LoRAs' rank": "Average PG\nat one LoRA's rank",
    "means of A and of B": "means of\nA and of B",
    "PG less Average PG": "PG less\nAverage PG",
    "shuffled within the operation": "shuffled within\nthe operation",
    "averaged within the operation": "averaged within\nthe operation",
}


def _rows(axes: Axes, variants: Result, names: list[str], looks: dict[str, tuple[str, str]]) -> None:
    """A row for each name, with each seed as a tick below."""
    base = np.array(variants["base"]["by_seed"])
    for row, name in enumerate(names):
        dots(axes, [-row], [variants[name]["over_base"]["psnr"]], *looks[name], sideways=True)
        seeds = np.array(variants[name]["by_seed"]) - base
        if len(seeds) > 1:
            axes.plot(seeds, np.full(len(seeds), -row - 0.3), "|", color="0.35", markersize=5)
    axes.set_yticks(-np.arange(len(names)), names)
    axes.set_ylim(0.5 - len(names), 0.5)


def _energy_bars(axes: Axes, result: Result) -> None:
    parts = [*result["energy"], result["shipped"]["energy"]]
    names = [f"seed {record['seed']}" for record in result["records"]["PG"]] + [_label(result)]
    left = np.zeros(len(parts))
    labels = {"common": "common to all", "kind": "of the operation", "instance": "of the edit"}
    for (key, label), color, hatch in zip(labels.items(), PALETTE, ("", "///", "..."), strict=False):
        values = np.array([part[key] for part in parts])
        axes.barh(names, values, left=left, color=color, hatch=hatch, label=label, edgecolor="white")
        left = left + values
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1), columnspacing=1)
