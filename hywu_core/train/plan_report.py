"""A plan as text: one column for each number of GPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..report import table
from .plan_devices import PER_NODE
from .plan_model import TrainPlan

_PARTS_NAMED = 3


def report(plans: Sequence[TrainPlan]) -> str:
    """Tables and sentences for plans of one size on several numbers of GPUs."""
    first = plans[0]
    how = first.arrangement
    counts = ", ".join(f"{name} {_count(n)}" for name, n in first.parameters.items())
    lines = [
        f"{first.size}: {counts} parameters",
        f"on {first.device}: precision {how.precision}, generator and AdamW in {how.weights}, backbone in "
        f"{how.backbone}, gradient checkpointing {'on' if how.checkpointing else 'off'}",
        "",
        table(["", *(_gpus(plan) for plan in plans)], _rows(plans)),
        "",
        *(sentence(plan) for plan in plans),
        "",
        f"Counted on the step's own code with tensors that have no numbers; time from the makers' "
        f"figures and {first.efficiency:.0%} of the peak.",
    ]
    if first.assumptions:
        lines.append("Assumed: " + "; ".join(first.assumptions) + ".")
    return "\n".join(lines)


def sentence(plan: TrainPlan) -> str:
    """Whether it fits, and if not, what to do."""
    needs = f"{_gigabytes(plan.peak)} of {_gigabytes(plan.available)} GB"
    if plan.fits:
        return f"{_gpus(plan)}: fits, needs {needs}.{_quicker(plan)}"
    largest = sorted(plan.memory.items(), key=lambda part: -part[1])[:_PARTS_NAMED]
    parts = ", ".join(f"{name} {_gigabytes(n)} GB" for name, n in largest)
    return f"{_gpus(plan)}: does not fit, needs {needs}; the largest parts are {parts}. {_advice(plan)}"


def _quicker(plan: TrainPlan) -> str:
    how = plan.arrangement
    shard = max(1, PER_NODE // how.sequence)
    copies, rest = divmod(how.gpus, shard * how.sequence)
    waits = plan.seconds["traffic beside it"] > plan.seconds["compute"]
    if not waits or rest or how.shard == shard * how.sequence:  # it is within nodes already
        return ""
    within = f"--shard {shard} --replicate {copies}"
    return f" It waits for traffic; {within} keeps most of it within nodes."


def _advice(plan: TrainPlan) -> str:
    how, memory = plan.arrangement, plan.memory
    advice = []
    state = sum(
        memory[part]
        for part in ("generator weights", "AdamW moments", "moving average", "gradients", "backbone weights")
    )
    if state > plan.available / 2 and how.shard < how.gpus:
        advice.append(f"--shard {how.gpus // how.sequence} --replicate 1")
    if not how.checkpointing:
        advice.append("--recompute")
    elif memory["working"] + memory["generator activations"] > plan.available / 2:
        if how.sequence < how.gpus:
            advice.append(f"--sequence {min(how.gpus, 2 * how.sequence)} or more")
        if plan.batch_size * how.sequence > how.gpus:
            advice.append("a smaller --batch-size")
    if memory["backbone weights"] > plan.available / 4 and how.backbone in ("fp32", "bf16"):
        advice.append("--quantize nf4")
    if how.weights == "fp32" and how.precision == "bf16" and state > plan.available / 4:
        advice.append("--set weights=bf16")
    return f"Try {', '.join(advice or ['more GPUs'])}."


def _rows(plans: Sequence[TrainPlan]) -> list[list[str]]:
    rows = [
        ["batch (rows of a step)", *(str(plan.batch_size) for plan in plans)],
        ["shard x sequence x backbone's", *(_arranged(plan) for plan in plans)],
    ]

    def group(title: str, of: Callable[[TrainPlan], Mapping[str, float]], unit: float, digits: int) -> None:
        names = dict.fromkeys(name for plan in plans for name in of(plan))
        if names:
            rows.append([title, *("" for _ in plans)])
        for name in names:
            values = [of(plan).get(name, 0.0) / unit for plan in plans]
            if any(values):
                rows.append([f"  {name}", *(f"{value:,.{digits}f}" for value in values)])

    group("memory of a GPU at the worst moment, GB", _memory, 1e9, 2 if plans[0].peak >= 1e10 else 3)
    group("work of a GPU and step, TFLOP", lambda plan: plan.flop, 1e12, 3)
    group("sent by a GPU in a step, GB", lambda plan: plan.traffic, 1e9, 2)
    group("time of a step, ms", lambda plan: plan.seconds, 1e-3, 1)
    rows.append(["rows a second, all GPUs", *(f"{p.batch_size / p.seconds['step']:,.2f}" for p in plans)])
    return rows


def _memory(plan: TrainPlan) -> dict[str, float]:
    return {**plan.memory, "needed": plan.peak}


def _arranged(plan: TrainPlan) -> str:
    how = plan.arrangement
    return f"{how.shard // how.sequence} x {how.sequence} x {how.backbone_sequence}"


def _gpus(plan: TrainPlan) -> str:
    n = plan.arrangement.gpus
    return f"{n:,} GPU" + ("s" if n > 1 else "")


def _gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f}"


def _count(n: int) -> str:
    return f"{n / 1e9:.2f}B" if n >= 1e9 else f"{n / 1e6:.2f}M"
