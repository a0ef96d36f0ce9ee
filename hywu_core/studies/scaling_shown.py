"""Report and figure of the scaling study: for every axis the gain, and the cost beside it."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from .compared import cells, gap
from .dots import dots
from .frame import Result
from .quality import MEASURES
from .style import MARKERS, PALETTE, panel, sheet
from .told import budget_told, counted, rates_told

_TITLES = {
    "size": "generator's depth and width",
    "rank": "rank of the LoRAs",
    "segment": "segment of the tokens",
    "linears": "linears that are adapted",
}
_SHORT = {
    "size": "depth and width",
    "rank": "rank",
    "segment": "segment",
    "linears": "adapted linears",
}


def report(result: Result) -> str:
    """The result as a page whose every number comes from it."""
    config, rates = result["config"], {rate["lr"] for rate in result["rates"].values()}
    rate = f"the learning rate {min(rates):g}" if len(rates) == 1 else "a learning rate that was searched for"
    headings = [measure.label for measure in MEASURES.values()]
    lines = [
        "# Scaling",
        "",
        f"Generators of other sizes, for {', '.join(result['operations'])}, new to the base. In "
        f"the middle is a generator of width {config['d_model']} and depth {config['n_layers']} for LoRAs of "
        f"rank {config['rank']} on all linears; one thing is changed at a time, depth and width together. "
        f"All learn with {rate}. {budget_told(result)}",
        "",
        f"The frozen base has {cells(result['base']['mean'])} ({', '.join(headings)}). "
        "Costs are of writing one LoRA: multiplications and additions of matrix products, and processor "
        "seconds, the settings in turn in one process.",
    ]
    for axis, points in result["axes"].items():
        lines += ["", f"## The {_TITLES[axis]}", "", *_table(result, points), "", _sentence(result, axis)]
    lines += ["", "## Learning rates", "", *rates_told(result)]
    return "\n".join(lines) + "\n"


def _table(result: Result, points: list[Result]) -> list[str]:
    lines = [
        "| setting | trained | generated | tokens | GFLOP | ms | ms of a training step "
        "| PSNR over the base, dB | of each seed, dB |",
        "|---|" + "---|" * 8,
    ]
    for point in points:
        part = result["settings"][point["setting"]]
        seeds = ", ".join(f"{a:.1f}" for a in part["by_seed"])
        lines.append(
            f"| {point['setting']} | {part['trained_parameters']:,} | {part['generated_parameters']:,} | "
            f"{part['tokens']:,} | {part['gflop']:.2f} | {part['milliseconds']:.0f} | "
            f"{part['step_milliseconds']:.0f} | {gap(part['over_base']['psnr'], '')} | "
            f"{seeds} |"
        )
    return lines


def _sentence(result: Result, axis: str) -> str:
    """The most and the least that an axis brings, and for what."""
    found = {point["setting"]: result["settings"][point["setting"]] for point in result["axes"][axis]}
    best, worst = (f(found, key=lambda name: found[name]["over_base"]["psnr"]["mean"]) for f in (max, min))
    if result["config"]["seeds"] == 1:  # what another training would give is in no interval
        told = "with one training of each, intervals are over photographs alone, so this ranks nothing"
    elif found[best]["over_base"]["psnr"]["low"] > found[worst]["over_base"]["psnr"]["high"]:
        told = "their intervals do not meet"
    else:
        told = "their intervals overlap, so this ranks nothing"
    return (
        f"Best is {best} ({gap(found[best]['over_base']['psnr'])}, {found[best]['gflop']:.2f} GFLOP), worst "
        f"{worst} ({gap(found[worst]['over_base']['psnr'])}, {found[worst]['gflop']:.2f} GFLOP); {told}."
    )


def figure(result: Result, path: Path) -> None:
    """Above, what each setting gains over the base; below, what writing one of its LoRAs costs."""
    with sheet(path, 7.2, 4.6) as drawing:
        panels = drawing.subplots(2, len(_TITLES), sharey="row", sharex="col")
        for column, axis in enumerate(_TITLES):
            above, below = panels[:, column]
            panel(above, "abcd"[column], _SHORT[axis])
            panel(below, "efgh"[column], "")
            _draw(result, axis, above, below)
            below.set_yscale("log")
        panels[0, 0].set_ylabel("PSNR over the frozen base, dB")
        panels[1, 0].set_ylabel("GFLOP to write a LoRA")


def _draw(result: Result, axis: str, above: Axes, below: Axes) -> None:
    """One axis; of depth and width, a curve for each depth."""
    points = result["axes"][axis]
    depths = sorted({point["value"][0] for point in points}) if axis == "size" else [None]
    labels = [point["value"][1] if axis == "size" else point["value"] for point in points]
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    for row, depth in enumerate(depths):
        curve = [(p, places[label]) for p, label in zip(points, labels, strict=True)
                 if depth is None or p["value"][0] == depth]  # fmt: skip
        parts = [result["settings"][point["setting"]] for point, _ in curve]
        at, color, marker = [place for _, place in curve], PALETTE[row], MARKERS[row]
        name = None if depth is None else counted(depth, "block")
        shift = 0 if depth is None else (row - (len(depths) - 1) / 2) * 0.12
        values = [part["over_base"]["psnr"] for part in parts]
        line = "none" if axis == "linears" else "-"
        dots(above, [a + shift for a in at], values, color, marker, label=name, line=line)
        cost = [part["gflop"] for part in parts]
        below.plot(at, cost, linestyle=line, color=color, marker=marker, markersize=4, linewidth=0.9)
    shown = [str(label).replace(" ", "\n") for label in places]
    below.set_xticks(range(len(places)), shown)
    below.set_xlabel("width" if axis == "size" else "" if axis == "linears" else axis)
    if depths != [None]:
        above.legend(loc="best")
