"""A training step: time and memory of ours beside the same step written plainly, at equal losses.

All run in turns in one process, each on its own copy of the generator, on the same batches and from the same
seeds; ratios are taken round by round, and the losses of all steps must agree. See `train_steps.py` for what
"plainly" means.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import torch

from ..cli import require
from ..devices import resolve_device, without_cudnn_attention
from ..errors import HywuError, require_positive
from ..measure import Matmul, Run, in_turns, peak_extra_bytes, threads
from ..report import machine, megabytes, table
from ..train.plan_trace import Ledger
from .train_steps import SIZES, Ours, Plain, Thrifty, TrainingStep, draw

OURS, MICRO = "ours", "ours, in micro-batches"
PLAIN, THRIFTY = "plain", "plain, backward after each sample"
# What one of the two is to be at least, beside the plain step.
GOALS = {"throughput": 1.5, "memory": 2.0}
# Of the losses, relative: rounding, which Adam's first steps make more of.
_TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}


def configure(parse: argparse.ArgumentParser) -> None:
    """Add the options of this bench."""
    parse.add_argument("--size", choices=SIZES, default="small", help="of the models (%(default)s)")
    parse.add_argument("--steps", type=int, default=7, help="measured steps of each (%(default)s)")
    parse.add_argument(
        "--noise-levels", type=int, default=1, help="rows of the backbone for each LoRA (%(default)s)"
    )
    parse.add_argument(
        "--accumulate",
        type=int,
        help="micro-batches of a step, where ours takes several (default: of two LoRAs each)",
    )
    parse.add_argument("--device", default="cpu", help="cpu, cuda, mps ... (%(default)s)")
    parse.add_argument("--bf16", action="store_true", help="products in bfloat16 (autocast)")
    parse.add_argument("--gradient-checkpointing", action="store_true", help="recompute activations, in both")
    parse.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time instead of the clock's, for a busy CPU; best with --threads 1",
    )
    parse.add_argument("--threads", type=int, help="of the CPU (default: torch's own choice)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; plain data. HywuError if the losses are not equal."""
    require_positive(arguments, "steps", "noise_levels", "threads")
    conditions = SIZES[arguments.size].conditions
    accumulate = conditions // 2 if arguments.accumulate is None else arguments.accumulate
    if accumulate < 1 or conditions % accumulate:
        raise HywuError(f"accumulate is {accumulate}; it must divide the {conditions} LoRAs of a step.")
    require("diffusers")
    device = resolve_device(arguments.device)
    with threads(arguments.threads):
        return _measure(arguments, accumulate, device)


def _measure(arguments: argparse.Namespace, accumulate: int, device: torch.device) -> dict[str, Any]:
    without_cudnn_attention()  # as the trainer has it
    size, precision = SIZES[arguments.size], "bf16" if arguments.bf16 else "fp32"
    # Each contender takes one step to count its work, one for its memory, and one to warm up.
    batches = [draw(size, arguments.noise_levels, seed, device) for seed in range(arguments.steps + 3)]
    settings = (size, batches, device, arguments.bf16, arguments.gradient_checkpointing)
    contenders: dict[str, TrainingStep] = {OURS: Ours(*settings), MICRO: Ours(*settings)}
    contenders[MICRO].accumulate = accumulate
    contenders[THRIFTY] = Thrifty(*settings)
    # What is recomputed after the call would see the frozen weights again.
    if not arguments.gradient_checkpointing:
        contenders[PLAIN] = Plain(*settings)
    others = [name for name in contenders if name not in (OURS, MICRO)]
    flop = {name: _work(step, arguments.gradient_checkpointing) for name, step in contenders.items()}
    extra = {name: peak_extra_bytes(step, device) for name, step in contenders.items()}
    tokens = size.conditions * arguments.noise_levels * (2 * (size.latents // 2) ** 2 + size.n_text)
    width = size.backbone.n_heads * 128
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    product, product_flop = Matmul(tokens, width, 4 * width).runner(device, dtype, seconds=0.3)
    runs: dict[str, Run] = {**contenders, "product": product}
    clock = time.process_time if arguments.processor_time else time.perf_counter
    rounds = in_turns(runs, arguments.steps, device, clock=clock)
    resident = {name: step.resident_bytes for name, step in contenders.items()}
    whole = {name: resident[name] + (peak or 0) for name, peak in extra.items()}
    return {
        "bench": "train",
        "size": arguments.size,
        "precision": precision,
        "clock": "processor" if arguments.processor_time else "wall",
        "gradient_checkpointing": arguments.gradient_checkpointing,
        "conditions": size.conditions,
        "noise_levels": arguments.noise_levels,
        "accumulate": accumulate,
        "weights": {
            "generator": contenders[OURS].generator.n_parameters,
            "backbone": sum(p.numel() for p in contenders["ours"].backbone.parameters()),
        },
        "machine": machine(device),
        "flop": flop,
        "ceiling_flops": product_flop / rounds.spread("product").median,
        "seconds": {name: rounds.spread(name).to_dict() for name in contenders},
        "share_of_ceiling": {
            name: rounds.ratio("product", name).scaled(flop[name] / product_flop).to_dict()
            for name in contenders
        },
        "peak_extra_bytes": extra,
        "resident_bytes": resident,
        "throughput_ratio": {
            ours: {name: rounds.ratio(name, ours).to_dict() for name in others} for ours in (OURS, MICRO)
        },
        "memory_ratio": {
            ours: {name: whole[name] / whole[ours] if extra[ours] else None for name in others}
            for ours in (OURS, MICRO)
        },
        "loss_difference": _require_equal(contenders, precision),
        "losses": {name: torch.stack(step.losses).tolist() for name, step in contenders.items()},
    }


def report(result: Mapping[str, Any]) -> str:
    """The result as text."""
    rows_of_step = result["conditions"] * result["noise_levels"]
    rows = [
        [
            name,
            f"{seconds['median']:.3f} [{seconds['minimum']:.3f}, {seconds['maximum']:.3f}]",
            f"{rows_of_step / seconds['median']:.2f}",
            f"{result['flop'][name] / 1e9:,.1f}",
            f"{result['share_of_ceiling'][name]['median']:.0%}",
            megabytes(result["peak_extra_bytes"][name]),
            megabytes(result["resident_bytes"][name]),
        ]
        for name, seconds in result["seconds"].items()
    ]
    where, ratios = result["machine"], result["throughput_ratio"]
    share = "MFU" if where["device"] != "cpu" else "of ceiling"
    return "\n".join(
        [
            f"train {result['size']}: generator {result['weights']['generator']:,}, backbone "
            f"{result['weights']['backbone']:,} weights, {result['conditions']} LoRAs x "
            f"{result['noise_levels']} rows (or {result['accumulate']} micro-batches), {result['precision']}"
            + (", gradient checkpointing" if result["gradient_checkpointing"] else "")
            + f" on {where['name']} ({where['device']})",
            table(
                [
                    "",
                    f"{result['clock']} seconds a step",
                    "rows/s",
                    "GFLOP",
                    share,
                    "peak extra memory",
                    "always there",
                ],
                rows,
            ),
            f"ceiling: {result['ceiling_flops'] / 1e9:,.0f} GFLOP/s of a plain matrix product in the same "
            "rounds; always there: weights and moments; recomputed work is not counted",
            *(
                _compared(ours, other, ratio, result["memory_ratio"][ours][other])
                for ours, beside in ratios.items()
                for other, ratio in beside.items()
            ),
            f"losses of {len(result['losses'][OURS])} steps agree to {result['loss_difference']:.1e}",
        ]
    )


def _compared(ours: str, other: str, throughput: Mapping[str, float], memory: float | None) -> str:
    reached = throughput["median"] >= GOALS["throughput"] or (memory or 0) >= GOALS["memory"]
    return (
        f"{ours} / {other}: throughput {throughput['median']:.2f} [{throughput['minimum']:.2f}, "
        f"{throughput['maximum']:.2f}]"
        + ("" if memory is None else f", memory in all {1 / memory:.2f}")
        + f"; {GOALS['throughput']:g} x the throughput or 1 / {GOALS['memory']:g} of the memory: "
        + ("reached" if reached else "not reached")
    )


def _work(step: TrainingStep, checkpointing: bool) -> int:
    """FLOP of a step, without what is only computed again."""
    step.recompute(False)
    with Ledger() as counted:
        step()
    step.recompute(checkpointing)
    step.optimizer.zero_grad(set_to_none=True)
    return counted.flop


def _require_equal(contenders: Mapping[str, TrainingStep], precision: str) -> float:
    """The largest relative difference of the losses; HywuError if it is more than rounding."""
    ours, *others = (torch.stack(step.losses) for step in contenders.values())
    difference = max(((ours - other).abs() / other.abs()).max().item() for other in others)
    if not difference <= _TOLERANCE[precision]:
        raise HywuError(
            f"The losses differ by {difference:.1e} of their value, where rounding explains "
            f"{_TOLERANCE[precision]:.0e}; what was measured is not the same training."
        )
    return difference
