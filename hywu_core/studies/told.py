"""What studies with trainings tell in the same words: the budget, and how learning rates were chosen."""

from __future__ import annotations

from collections.abc import Sequence

from .frame import Result
from .statistics import INTERVALS, intervals_told


def counted(number: int, noun: str) -> str:
    """ "1 photograph", "2 photographs"."""
    return f"{number} {noun}{'s' * (number > 1)}"


def several(values: Sequence[int]) -> str:
    """ "160", or "160 or 240"."""
    return " or ".join(f"{value:,}" for value in values)


def budget_told(result: Result) -> str:
    """What every training took, and on what it was measured."""
    config, budget = result["config"], result["budget"]
    equal = "the same" if budget["equal"] else "NOT the same"
    several_seeds = f"{config['seeds']} seeds, from {config['seed']} on"
    seeds = several_seeds if config["seeds"] > 1 else f"one seed, {config['seed']}"
    return (
        f"There are {config['samples']} different samples of each operation, crops of {config['size']} "
        f"pixels of the training photographs; a training takes {several(budget['steps'])} steps and draws "
        f"{several(budget['samples'])} edits, {equal} for all learners of a seed; {seeds}. "
        f"Measured on {result['photographs']} held-out photographs, "
        f"{result['cases']} edits a training, against the exact result, {config['sampling']} sampling steps, "
        f"in wordings that were trained on. {_brackets_told(result)}; differences are taken edit by edit. "
        "PSNR and SSIM: more is better; FLIP: less."
    )


def _brackets_told(result: Result) -> str:
    """What the intervals are, and of an older result that they are too narrow."""
    of = ["seeds"] * (result["config"]["seeds"] > 1) + ["photographs"] * (result["photographs"] > 1)
    if not of:
        return "One seed and one photograph have no intervals"
    told = f"Brackets are 95% {intervals_told(result)} over {' and '.join(of)}"
    if of == ["photographs"]:
        told += " alone: what another training would give is in none"
    return told if result.get("intervals") == INTERVALS else f"{told}; for so few they are too narrow"


def rates_told(result: Result) -> list[str]:
    """The search for each learner's rate."""
    if not result["config"]["search_steps"]:
        chosen = sorted({rate["lr"] for rate in result["rates"].values()})
        if len(chosen) == 1:
            return [f"None was searched for; all have {chosen[0]:g}."]
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
