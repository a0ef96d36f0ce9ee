"""The report and the figure of the geometry study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from .dots import dots
from .frame import Result
from .statistics import cell, intervals_told, p_value
from .style import MARKERS, PALETTE, panel, sheet

_NAMES = {"factors": "flattened A and B, as in the paper", "updates": "the updates B A"}


def report(result: Result) -> str:
    """The result as a page whose every number comes from it."""
    config, errors = result["config"], result["distance_errors"]
    lines = [
        "# The geometry of generated LoRAs",
        "",
        f"{result['pairs']:,} pairs: {len(result['operations'])} operations, asked for in held-out words, on "
        f"{config['crops']} crops of held-out photographs. Each LoRA ({result['lora_parameters']:,} numbers, "
        f"an update of {result['update_parameters']:,}) is projected at random to {config['components']:,} "
        "numbers, in two ways: flattened A and B, as in the paper, and the updates B A, which do not depend "
        f"on how an update is written as a product. Brackets are 95% {intervals_told(result)}.",
        "",
        f"Over {errors['pairs']} pairs of LoRAs the projection changes squared distances by "
        f"{errors['factors']['rms']:.1%} (flattened) and {errors['updates']['rms']:.1%} (updates), root mean "
        f"square, and by {errors['factors']['largest']:.1%} and {errors['updates']['largest']:.1%} at most.",
        "",
        "## Neighbours",
        "",
        f"The {config['neighbours']} nearest LoRAs of each (fewer where the group is small) against as many "
        "random ones. Likeness of pictures and of words is the cosine of the standardised features that the "
        "generator is given; of operations and languages it is 1 or 0. Effect: the probability that a near "
        "pair is more alike than a random one, 0.5 being none. p: Wilcoxon's signed-rank test over points, "
        "which share crops and words and are not as independent as it takes them to be.",
        "",
        "| LoRAs as | alike in | nearest | random | effect | p |",
        "|---|---|---|---|---|---|",
    ]
    for kind, questions in result["neighbours"].items():
        for name, found in questions.items():
            if found["points"]:
                lines.append(
                    f"| {_NAMES[kind]} | {name} | {cell(found['nearest'], digits=3)} | "
                    f"{cell(found['random'], digits=3)} | {found['effect']:.2f} | {p_value(found['p'])} |"
                )
    lines += ["", "## Clusters", "", f"K-means ({config['clusters']}) on what the generator is given:"]
    for kind, clusters in result["clusters"].items():
        lines += ["", f"By {kind}:", ""]
        lines += [
            f"- cluster {number}: {c['pairs']} pairs (operations: {c['operations']}, crops: {c['crops']}), "
            f"mostly {', '.join(c['mostly'])}"
            for number, c in enumerate(clusters)
        ]
    lines += [
        "",
        "K-means on the LoRAs themselves, with as many clusters, agrees with these, and with operations and "
        "crops, by this much (adjusted mutual information: 0 is chance, 1 is the same; p by permutation):",
        "",
        "| LoRAs as | by | agreement | p |",
        "|---|---|---|---|",
    ]
    for kind, questions in result["agreement"].items():
        for name, found in questions.items():
            lines.append(
                f"| {_NAMES[kind]} | {name} | {found['adjusted_mutual_information']:.3f} | {found['p']:.2g} |"
            )
    lines += ["", "## Directly optimised LoRAs", "", *_beside(result["optimised"], config), ""]
    lines.append("`geometry.html` shows every pair with its photograph, instruction and edit.")
    return "\n".join(lines) + "\n"


def _beside(beside: Result, config: Result) -> list[str]:
    below, norm = beside["loss_below_frozen"], beside["norm"]
    loss = {name: cell(found, digits=3) for name, found in beside["loss"].items()}
    lines = [
        f"{beside['pairs']} of the pairs got a LoRA of their own: {config['optimised_steps']} steps of Adam "
        f"from B = 0 on that pair alone. On {config['optimised_checks']} other noises of the same pair the "
        f"loss is {loss['frozen']} with the frozen backbone, {loss['generated']} with the generated LoRA and "
        f"{loss['optimised']} with the optimised one: {cell(below['generated'], 100, '%')} and "
        f"{cell(below['optimised'], 100, '%')} below the frozen one, "
        f"pair by pair. Their updates' norms are {cell(norm['generated'], digits=2)} (generated) and "
        f"{cell(norm['optimised'], digits=2)} (optimised).",
        "",
    ]
    for kind in ("factors", "updates"):
        found = beside[kind]
        hit = found["retrieved"]
        lines.append(
            f"By {_NAMES[kind]}, an optimised LoRA and the generated one of its pair have a cosine of "
            f"{cell(found['cosine_of_twins'], digits=3)}; the generated LoRA nearest to an optimised one, "
            f"each about its set's own mean, is of the same operation for "
            f"{cell(hit['right'], 100, '%')} of them (by chance {hit['chance']:.1%}, p = {hit['p']:.2g})."
        )
    return lines


def figure(result: Result, path: Path) -> None:
    """Maps of the LoRAs by the clusters of their words and pictures, their neighbours, and optimised ones."""
    points, beside = result["points"], result["optimised"]
    with sheet(path, 10.0, 11.4) as drawing:
        axes = drawing.subplot_mosaic("abc;dee;fgh", height_ratios=(1, 1, 0.9))
        for letter, (by, labels) in zip("abc", points["clusters"].items(), strict=True):
            _clusters(axes[letter], letter, f"clusters of {by}", points["factors"], labels)
        _clusters(
            axes["d"], "d", "of words, on the map of updates", points["updates"], points["clusters"]["words"]
        )
        _neighbours(axes["e"], "e", result["neighbours"])
        for letter, kind in zip("fg", ("factors", "updates"), strict=True):
            _twins(axes[letter], letter, _NAMES[kind].partition(",")[0], beside[kind]["map"])
        _losses(axes["h"], "h", beside)
        handles, _ = axes["b"].get_legend_handles_labels()
        said = [", ".join(cluster["mostly"]) for cluster in result["clusters"]["words"]]
        drawing.legend(
            handles, said, loc="outside lower center", ncols=2, markerscale=2.5,
            title="b, d: clusters of words, by their most frequent operations",
        )  # fmt: skip


def _clusters(axes: Axes, letter: str, title: str, xy: Sequence, labels: Sequence[int]) -> None:
    x, y = np.array(xy)
    for label in np.unique(labels):
        mine = np.array(labels) == label
        axes.scatter(
            x[mine], y[mine], s=4, linewidths=0, alpha=0.8, label=f"cluster {label}",
            color=PALETTE[label % len(PALETTE)], marker=MARKERS[label % len(MARKERS)],
        )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    panel(axes, letter, title)


def _neighbours(axes: Axes, letter: str, neighbours: Result) -> None:
    """Near pairs (filled) and random ones (open), of both kinds of vectors."""
    names = list(neighbours["factors"])
    for number, (kind, questions) in enumerate(neighbours.items()):
        for row, name in enumerate(names):
            found, y = questions[name], row + 0.26 * (number - 0.5)
            if not found["points"]:
                continue
            near, random = found["nearest"]["mean"], found["random"]["mean"]
            axes.plot([random, near], [y, y], color=PALETTE[number], linewidth=1)
            for value, fill, what in ((random, "white", "random"), (near, PALETTE[number], "nearest")):
                axes.plot(
                    value, y, MARKERS[number], color=PALETTE[number], markerfacecolor=fill, markersize=4.5,
                    label=f"{what}, {kind}" if row == 0 else None,
                )  # fmt: skip
    axes.axvline(0, color="0.7", linewidth=0.8)
    axes.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
    axes.invert_yaxis()
    axes.set(xlabel="likeness")
    axes.legend(loc="best")
    panel(axes, letter, "nearest LoRAs against random ones")


def _twins(axes: Axes, letter: str, title: str, xy: Sequence) -> None:
    """Generated LoRAs and the optimised ones of the same pairs, each two joined."""
    x, y = np.array(xy)
    half = len(x) // 2
    axes.plot([x[:half], x[half:]], [y[:half], y[half:]], color="0.75", linewidth=0.3, zorder=0)
    for number, (name, mine) in enumerate((("generated", slice(half)), ("optimised", slice(half, None)))):
        axes.scatter(
            x[mine], y[mine], s=10, linewidths=0, color=PALETTE[number], marker=MARKERS[number], label=name
        )
    axes.set(xticks=[], yticks=[])
    axes.legend(loc="best")
    panel(axes, letter, title)


def _losses(axes: Axes, letter: str, beside: Result) -> None:
    for row, (name, found) in enumerate(beside["loss"].items()):
        axes.bar(row, found["mean"], 0.6, color=(PALETTE[4], PALETTE[0], PALETTE[1])[row], label=name)
        dots(axes, [row], [found], "black", "none")
    axes.set_xticks(range(len(beside["loss"])), list(beside["loss"]))
    axes.set(ylabel="flow-matching loss of the pair")
    panel(axes, letter, f"how far each gets ({beside['pairs']} pairs)")
