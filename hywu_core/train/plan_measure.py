"""`--plan --measure`: small runs on the machine at hand, beside what the plan says of them.

Weights and inputs are random, the step is a run's own: generator, side path, backbone, loss, backward pass,
clipping, AdamW. The first run says which share of the machine's matrix products a step reaches; the time of
the others is predicted with it, and compared. All of them run in turns, so that a slow moment hits all.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..conditions import Condition
from ..devices import resolve_device, without_cudnn_attention
from ..generator import GeneratorConfig
from ..lora import LoraSpec
from ..measure import Matmul, in_turns, peak_extra_bytes
from ..report import machine, table
from ..tokens import TokenLayout
from .optimizer import parameter_groups
from .plan_arrangement import Arrangement, Shares
from .plan_devices import Accelerator
from .plan_model import TrainPlan, plan
from .plan_sizes import TrainSize, flux_like
from .plan_trace import Ledger

_ROUNDS = 5
_PRODUCT = Matmul(1024, 512, 2048)
_COPIED = 2**26  # bytes


@dataclass(frozen=True)
class SmallRun:
    """A generator and a FLUX small enough for any machine. `heads`: of 128 channels each, of the FLUX."""

    name: str
    heads: int
    double: int
    single: int
    side: int
    d_model: int
    n_layers: int
    batch: int
    checkpointing: bool = False

    def size(self) -> TrainSize:
        """What is trained on what."""
        from diffusers import FluxTransformer2DModel

        with torch.device("meta"):
            module = FluxTransformer2DModel(
                num_layers=self.double,
                num_single_layers=self.single,
                num_attention_heads=self.heads,
                joint_attention_dim=512,
                pooled_projection_dim=512,
            )
        spec = LoraSpec.from_module(module, rank=8, alpha=8)
        config = GeneratorConfig(512, d_model=self.d_model, n_layers=self.n_layers, n_heads=4)
        backbone = flux_like(module, "flux", self.side, 2, 32)
        return TrainSize(self.name, config, spec, TokenLayout.for_spec(spec), backbone, 64)


RUNS = (
    SmallRun("first", 2, 1, 4, 8, 256, 3, 2),
    SmallRun("deeper", 2, 2, 6, 8, 256, 5, 2),
    SmallRun("deeper, recomputing", 2, 2, 6, 8, 256, 5, 2, checkpointing=True),
    SmallRun("wider", 4, 1, 3, 12, 384, 3, 1),
)


class RealStep:
    """A step of a size on a device, with random weights: call it."""

    def __init__(self, size: TrainSize, how: Arrangement, device: torch.device) -> None:
        self.size, self.how, self.device = size, how, device
        self.shares, _ = Shares.of(size, how)
        torch.manual_seed(0)
        with device:
            self.generator = size.build_generator().train()
            self.backbone = size.backbone.build().to(how.numbers.backbone).requires_grad_(False).train()
            self.tokens = torch.randn(self.shares.conditions, size.n_condition, size.generator.condition_dim)
        self.generator.gradient_checkpointing = how.checkpointing
        if how.checkpointing:
            self.backbone.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.generator, 0.01), lr=1e-4, fused=device.type == "cuda"
        )

    def __call__(self) -> Tensor:
        """One step; the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.how.numbers.context(self.device.type):
            adapter = self.generator(Condition(self.tokens))
            attached = self.size.backbone.adapt(self.backbone, adapter)
            dtype = self.how.numbers.backbone
            velocity = self.size.backbone.velocity(self.backbone, self.shares.rows, dtype, self.device)
            loss = (velocity.float() - 1).square().mean()
        loss.backward()
        attached.remove()
        nn.utils.clip_grad_norm_(self.generator.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    @property
    def resident_bytes(self) -> int:
        """What is there between steps, of weights and moments."""
        kept = [t for state in self.optimizer.state.values() for t in state.values() if t.dim()]
        weights = [*self.generator.parameters(), *self.backbone.parameters()]
        return sum(t.numel() * t.element_size() for t in (*kept, *weights))


def measure(device_name: str, runs: tuple[SmallRun, ...] = RUNS, rounds: int = _ROUNDS) -> dict[str, Any]:
    """Predictions and measurements of each run; plain data."""
    device = resolve_device(device_name)
    without_cudnn_attention()
    precision = "bf16" if device.type == "cuda" else "fp32"
    sizes = [run.size() for run in runs]
    arrangements = [
        Arrangement(
            batch_size=run.batch, precision=precision, backbone="fp32", checkpointing=run.checkpointing
        )
        for run in runs
    ]
    steps = [RealStep(size, how, device) for size, how in zip(sizes, arrangements, strict=True)]
    measured = [_counted(step, device) for step in steps]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    product, flop = _PRODUCT.runner(device, dtype, seconds=0.2)
    contenders = {run.name: step for run, step in zip(runs, steps, strict=True)}
    copy = _copy(device)
    rounds_of = in_turns(contenders | {" product": product, " copy": copy}, rounds, device)
    seconds = rounds_of.seconds
    ceiling = flop / statistics.median(seconds[" product"])
    bandwidth = 2 * _COPIED / statistics.median(seconds[" copy"])
    here = Accelerator("this machine", {precision: ceiling}, float("inf"), bandwidth, 1.0, 1.0)
    whole = [plan(size, how, here, 1.0, reserved=0) for size, how in zip(sizes, arrangements, strict=True)]
    # Round by round beside the first, so that what slows all of them is no error of the plan.
    first = rounds_of.spread(runs[0].name).median
    medians = [first * rounds_of.ratio(run.name, runs[0].name).median for run in runs]
    efficiency = whole[0].seconds["compute"] / (medians[0] - whole[0].seconds["update"])
    return {
        "plan": "measured",
        "machine": machine(device),
        "precision": precision,
        "ceiling_flops": ceiling,
        "bytes_per_second": bandwidth,
        "efficiency": efficiency,
        "runs": [
            _compared(run.name, planned, counted, median, efficiency, number == 0)
            for number, (run, planned, counted, median) in enumerate(
                zip(runs, whole, measured, medians, strict=True)
            )
        ],
    }


def measured_report(result: Mapping[str, Any]) -> str:
    """The comparison as text."""
    rows = []
    units = {"weights, MB": 1e6, "peak memory, MB": 1e6, "GFLOP": 1e9, "step, ms": 1e-3}
    for run in result["runs"]:
        for name, unit in units.items():
            values = run["quantities"][name]
            error = "(sets it)" if values["error"] is None else f"{values['error']:+.1%}"
            rows.append(
                [
                    f"{run['name']}: {name}",
                    f"{values['planned'] / unit:,.1f}",
                    f"{values['measured'] / unit:,.1f}",
                    error,
                ]
            )
    where = result["machine"]
    return "\n".join(
        [
            table(["", "planned", "measured", "error"], rows),
            f"{where['name']} ({where['device']}), {result['precision']}: matrix products reach "
            f"{result['ceiling_flops'] / 1e9:,.0f} GFLOP/s, a step {result['efficiency']:.0%} of "
            f"that: --efficiency {result['efficiency']:.2f}.",
        ]
    )


def _counted(step: RealStep, device: torch.device) -> dict[str, float]:
    step()  # moments are made here
    step.optimizer.zero_grad(set_to_none=True)
    extra = peak_extra_bytes(step, device)
    with Ledger() as counted:
        step()
    weights = sum(p.numel() * p.element_size() for p in step.generator.parameters())
    resident = step.resident_bytes
    step.optimizer.zero_grad(set_to_none=True)
    return {
        "weights, MB": weights,
        "peak memory, MB": float("nan") if extra is None else resident + extra,
        "GFLOP": counted.flop,
    }


def _copy(device: torch.device) -> Any:
    source = torch.zeros(_COPIED // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _compared(
    name: str,
    planned: TrainPlan,
    counted: dict[str, float],
    seconds: float,
    efficiency: float,
    calibrates: bool,
) -> dict[str, Any]:
    predicted = {
        "weights, MB": planned.memory["generator weights"],
        "peak memory, MB": planned.peak,
        "GFLOP": sum(planned.flop.values()),
        "step, ms": planned.seconds["compute"] / efficiency + planned.seconds["update"],
    }
    quantities = {}
    for what, expected in predicted.items():
        found = seconds if what == "step, ms" else counted[what]
        error = None if calibrates and what == "step, ms" else expected / found - 1
        quantities[what] = {"planned": expected, "measured": found, "error": error}
    return {"name": name, "quantities": quantities}
