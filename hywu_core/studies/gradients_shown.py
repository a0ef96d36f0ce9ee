"""The report and the figure of the gradients study, in the order of the paper's figure 9."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cosines import off_diagonal, square
from .dots import dots
from .frame import Result
from .statistics import cell
from .style import MARKERS, PALETTE, SIGNED, panel, sheet

_SAID = {
    "start": "At the start (B = 0: the frozen backbone)",
    "shared": "At the trained shared LoRA",
}
_KINDS = ("within", "same family", "other family", "opposite", "between")
_MAIN = "start"  # the point whose matrices are drawn


def report(result: Result) -> str:
    """The result as a page whose every number comes from it."""
    config, lora, projection = result["config"], result["shared_lora"], result["projection"]
    lines = [
        "# Gradient conflict",
        "",
        f"{len(result['operations'])} operations, {config['samples']} draws of each: crops of "
        f"{config['pixels']} pixels, times and noises that are the same for every operation. Gradients of "
        f"the flow-matching loss of single edits, with respect to a LoRA of rank {config['rank']} "
        f"({result['lora_parameters']:,} parameters) on the frozen backbone, are projected at random from "
        f"{projection['from']:,} to {projection['to']:,} numbers (at the start, where B alone has one).",
        "",
        f"Over {projection['pairs_measured']} pairs this changes cosines by "
        f"{projection['cosine_error_rms']:.4f} (root mean square), at most "
        f"{projection['cosine_error_largest']:.4f}; the lemma of Johnson and Lindenstrauss promises squared "
        f"distances to within {projection['squared_distance_error_promised']:.2f} for all pairs of all "
        f"gradients. The shared LoRA was trained for {config['shared_steps']} steps of "
        f"{config['shared_batch']} edits; its loss fell from {lora['first_losses']:.4f} (the first tenth of "
        f"the steps) to {lora['last_losses']:.4f} (the last). There, {config['shared_samples']} of the draws "
        "are used.",
        "",
        "The conflict ratio is the share of negative cosines. Means and ratios are over different draws; "
        '"matched" cosines are of one crop, time and noise under two operations. Brackets are 95% bootstrap '
        f"intervals over {_resampled(result)}.",
    ]
    for point, part in result["points"].items():
        lines += ["", f"## {_SAID[point]}", "", *_table(part), "", *_sentences(part, result)]
    return "\n".join(lines) + "\n"


def _resampled(result: Result) -> str:
    """Over what the intervals of pairs are: of an older result, over pairs, which is said with its flaw."""
    summaries = [found for part in result["points"].values() for found in part["pairs"].values()]
    if any("resampled" in found for found in summaries):
        return "operations (a pair counts as often as both of its operations are drawn)"
    return (
        "pairs of operations, as if those that share an operation were independent: too narrow by a factor "
        "of up to 4 where there are many pairs, right for opposite ones, which share none"
    )


def _table(part: Result) -> list[str]:
    lines = ["| pairs | how many | mean cosine | conflict ratio | matched cosine |", "|---|---|---|---|---|"]
    for kind, found in part["pairs"].items():
        if found["pairs"]:
            matched = cell(found["matched_cosine"], digits=3) if "matched_cosine" in found else ""
            lines.append(
                f"| {kind} | {found['pairs']} | {cell(found['mean_cosine'], digits=3)} | "
                f"{cell(found['conflict_ratio'], 100, '%')} | {matched} |"
            )
    return lines


def _sentences(part: Result, result: Result) -> list[str]:
    called, contrast, agreement = (
        part[key] for key in ("called", "opposite_against_other", "clusters_are_families")
    )
    lines = [
        f"Of {called['pairs']} pairs of operations, {called['conflicting']:.1%} conflict beyond chance (a "
        f"negative mean cosine) and {called['aligned']:.1%} are aligned, at a false discovery rate of "
        f"{called['false_discoveries']:.0%}; in {called['more_negative_than_positive']:.1%} more cosines are "
        "negative than positive.",
    ]
    if contrast:
        test = "operations permuted within families" if "permuted" in contrast else "permutation test"
        lines.append(
            f"Opposite operations ({contrast['pairs'][0]} pairs) differ from the other pairs of their "
            f"families ({contrast['pairs'][1]}) by {contrast['difference']:+.3f} in mean cosine ({test}: "
            f"p = {contrast['p']:.2g}; one of them has the larger cosine with probability "
            f"{contrast['effect']:.2f})."
        )
    lines += [
        "Examples: "
        + "; ".join(
            f"{' and '.join(e['pair'])} ({e['kind']}), mean cosine {cell(e['mean_cosine'], digits=3)}, "
            f"conflict ratio {e['conflict_ratio']:.1%}"
            for e in part["examples"]
        )
        + ".",
        f"Spectral clustering against the families sorted by hand: adjusted Rand index "
        f"{agreement['adjusted_rand_index']:.2f} (p = {agreement['p']:.2g}). The clusters:",
        "",
    ]
    for label in sorted(set(part["clusters"])):
        names = [result["operations"][i] for i in part["order"] if part["clusters"][i] == label]
        lines.append(f"- cluster {label}: {', '.join(names)}")
    return lines


def figure(result: Result, path: Path) -> None:
    """Matrices as they are and reordered, three histograms, and what becomes of it all at the shared LoRA."""
    part = result["points"][_MAIN]
    with sheet(path, 11.0, 14.4) as drawing:
        tops = drawing.subfigures(3, 1, height_ratios=(4.6, 5.2, 4.6))
        families = _blocks(result["families"])
        everything = range(len(result["operations"]))
        _matrices(tops[0], part, everything, "ab", "by family", families)
        ordered = [part["clusters"][i] for i in part["order"]]
        clusters = [(f"cluster {name}", start, end) for name, start, end in _blocks(ordered)]
        names = [result["operations"][i] for i in part["order"]]
        _matrices(tops[1], part, part["order"], "cd", "by cluster", clusters, names)
        below = tops[2].subplots(2, 3)
        for axes, letter, example in zip(below[0], "efg", part["examples"], strict=True):
            _histogram(axes, letter, example)
        _kinds(below[1, 0], "h", result["points"])
        _scatter(below[1, 1], "i", result["points"])
        _within(below[1, 2], "j", result)


def _blocks(labels: Sequence) -> list[tuple[str, int, int]]:
    """(label, first, end) of every run of equal labels."""
    starts = [0, *(i for i in range(1, len(labels)) if labels[i] != labels[i - 1]), len(labels)]
    return [(str(labels[a]), a, b) for a, b in pairwise(starts)]


def _matrices(
    drawing: Figure,
    part: Result,
    order: Sequence[int],
    letters: str,
    how: str,
    blocks: Sequence[tuple[str, int, int]],
    names: Sequence[str] = (),
) -> None:
    """Mean cosines and conflict ratios side by side, in one order."""
    chosen = np.ix_(list(order), list(order))
    mean, conflict = (square(part[key])[chosen] for key in ("mean_cosine", "conflict_ratio"))
    # What lies beyond is nearly all on the diagonal; in its measure the rest would be white.
    reach = float(np.quantile(np.abs(off_diagonal(mean)), 0.99))
    off = float(np.abs(conflict - 0.5).max())
    left, right = drawing.subplots(1, 2)
    panel(left, letters[0], f"mean cosine, {how}")
    shown = left.imshow(mean, cmap=f"{SIGNED}_r", vmin=-reach, vmax=reach)
    drawing.colorbar(shown, ax=left, shrink=0.7, extend="both")
    panel(right, letters[1], f"conflict ratio, {how}")
    shown = right.imshow(conflict, cmap=SIGNED, vmin=0.5 - off, vmax=0.5 + off)
    drawing.colorbar(shown, ax=right, shrink=0.7)
    for axes in (left, right):
        for _, start, _ in blocks[1:]:
            axes.axhline(start - 0.5, color="black", linewidth=0.5)
            axes.axvline(start - 0.5, color="black", linewidth=0.5)
        middles, labels = [(a + b - 1) / 2 for _, a, b in blocks], [name for name, _, _ in blocks]
        axes.tick_params(length=1.5)
        axes.set_xticks(middles, labels, rotation=30, ha="right")
        if names:
            axes.set_yticks(range(len(names)), names, fontsize=3.9)
        else:
            axes.set_yticks(middles, labels)


def _histogram(axes: Axes, letter: str, example: Result) -> None:
    """The cosines of one pair, the negative ones in another colour."""
    edges, counts = np.array(example["edges"]), np.array(example["counts"])
    share = counts / counts.sum()
    negative = edges[:-1] < -1e-9
    for which, colour, hatch, label in (
        (negative, PALETTE[5], "////", "negative"),
        (~negative, PALETTE[0], "", "positive"),
    ):
        axes.bar(
            edges[:-1][which], share[which], np.diff(edges)[which], align="edge",
            color=colour, hatch=hatch, edgecolor="white", linewidth=0.3, label=label,
        )  # fmt: skip
    axes.axvline(example["mean_cosine"]["mean"], color="black", linewidth=1, linestyle="--", label="mean")
    a, b = example["pair"]
    panel(axes, letter, f"{example['kind']}: {a} / {b}\nconflict ratio {example['conflict_ratio']:.0%}")
    axes.set(xlabel="cosine of two gradients", ylabel="share of the pairs of draws")
    axes.legend()


def _kinds(axes: Axes, letter: str, points: Result) -> None:
    """Mean cosines of the kinds of pairs, at both points, with their intervals."""
    for number, (point, part) in enumerate(points.items()):
        for row, kind in enumerate(_KINDS):
            found = part["pairs"][kind]
            if not found["pairs"]:
                continue
            look, label = (PALETTE[number], MARKERS[number]), point if row == 0 else None
            at = [row + 0.22 * (number - 0.5)]
            dots(axes, at, [found["mean_cosine"]], *look, label=label, sideways=True)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(_KINDS)), _KINDS)
    axes.invert_yaxis()
    axes.set(xlabel="mean cosine")
    axes.legend()
    panel(axes, letter, "kinds of pairs")


def _scatter(axes: Axes, letter: str, points: Result) -> None:
    """Every pair of operations: its mean cosine at the start and at the shared LoRA."""
    start, shared = (square(points[name]["mean_cosine"]) for name in ("start", "shared"))
    upper = np.triu_indices(len(start), 1)
    axes.scatter(start[upper], shared[upper], s=3, color=PALETTE[0], alpha=0.35, linewidths=0)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set(xlabel="at the start", ylabel="at the shared LoRA")
    panel(axes, letter, "mean cosine of every pair")


def _within(axes: Axes, letter: str, result: Result) -> None:
    """How alike an operation's own gradients are, by who learned it."""
    positions = np.arange(len(result["points"]))
    for number, (split, label) in enumerate((("base", "the base knows it"), ("hywu", "new to the base"))):
        for x, part in zip(positions, result["points"].values(), strict=True):
            values = [
                o["within"]["mean"]
                for o, of in zip(part["operations"], result["splits"], strict=True)
                if of == split
            ]
            spread = np.linspace(-0.12, 0.12, len(values)) if values else []
            axes.plot(
                x + 0.36 * (number - 0.5) + np.array(spread), sorted(values), MARKERS[number],
                color=PALETTE[number], markersize=2.5, label=label if x == 0 else None,
            )  # fmt: skip
    axes.set_xticks(positions, list(result["points"]))
    axes.set(ylabel="mean cosine", xlim=(-0.6, len(positions) - 0.4))
    axes.margins(y=0.22)
    axes.legend(loc="upper right")
    panel(axes, letter, "within an operation")
