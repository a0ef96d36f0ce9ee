"""`python -m hywu_core.train --plan`: what a run would take, before it is begun."""

from __future__ import annotations

import argparse
from functools import cache

from ..cli import require
from ..errors import HywuError
from ..report import check_json, write_json
from .check_data import stray
from .plan_arrangement import BACKBONE_BYTES, Arrangement, Shares
from .plan_devices import EFFICIENCY, accelerator, accelerator_names
from .plan_model import TrainPlan, plan
from .plan_report import report
from .plan_sizes import size_names, train_size
from .plan_step import Rehearsal

_GB = 1e9
_OF_THE_RUN = ("accumulate", "weights")  # settings that a run has besides those of its sizes


def add_arguments(parse: argparse.ArgumentParser) -> None:
    """What there is to say about the machines of a run that is only planned."""
    group = parse.add_argument_group(
        "a plan before a run",
        f"With --recipe {', '.join(size_names())}; --batch-size, --precision, --set and --json say what they "
        "say elsewhere.",
    )
    group.add_argument("--plan", action="store_true", help="print memory, work, traffic and time of a step")
    group.add_argument(
        "--gpus", type=int, nargs="+", default=[1], metavar="N", help="GPUs in all; several to compare"
    )
    group.add_argument(
        "--gpu", default="h100", choices=accelerator_names(), help="their kind (default: %(default)s)"
    )
    group.add_argument("--memory", type=float, metavar="GB", help="of each (default: as the kind has)")
    group.add_argument("--shard", type=int, metavar="N", help="GPUs that share the weights (default: all)")
    group.add_argument(
        "--sequence", type=int, default=1, metavar="N", help="GPUs that share a condition's LoRA"
    )
    group.add_argument(
        "--backbone-sequence", type=int, default=1, metavar="N", help="GPUs that share a row's tokens"
    )
    group.add_argument(
        "--backbone-weights",
        default="bf16",
        choices=BACKBONE_BYTES,
        help="how the frozen weights are kept (default: %(default)s)",
    )
    group.add_argument(
        "--gradient-checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="plan for recomputed activations",
    )
    group.add_argument(
        "--efficiency",
        type=float,
        default=EFFICIENCY,
        metavar="SHARE",
        help="of the peak that a step reaches (default: %(default)s, assumed)",
    )
    group.add_argument(
        "--measure", action="store_true", help="compare plans with small runs on this machine, in percent"
    )


def refuse_stray(arguments: argparse.Namespace) -> None:
    """HywuError for arguments of a plan where none is asked for; they would be without effect."""
    if flag := stray(arguments, add_arguments):
        raise HywuError(f"{flag} is about a plan; ask for one with --plan.")


def plan_command(arguments: argparse.Namespace) -> int:
    """Print the plan, or how wrong plans are; returns the exit code."""
    check_json(arguments.json)
    require("diffusers")
    if arguments.measure:
        from .plan_measure import measure, measured_report

        result = measure(arguments.device or "cpu")
        print(measured_report(result))  # noqa: T201
    else:
        plans = _plans(arguments)
        print(report(plans))  # noqa: T201
        result = {"plans": [each.to_dict() for each in plans]}
    if arguments.json is not None:
        write_json(arguments.json, result)
    return 0


def _plans(arguments: argparse.Namespace) -> list[TrainPlan]:
    settings = dict(_assignment(each) for each in arguments.set)
    of_run = {name: settings.pop(name) for name in _OF_THE_RUN if name in settings}
    size = train_size(arguments.recipe or size_names()[0], settings)
    device = accelerator(arguments.gpu)
    if arguments.memory is not None:
        device = device.with_memory(arguments.memory * _GB)
    if not (device.memory > 0 and 0 < arguments.efficiency <= 1):
        raise HywuError(
            f"The memory is {device.memory / _GB:g} GB and the efficiency {arguments.efficiency:g}; the one "
            "must be positive and the other a share of at most 1."
        )
    arrangements = [_arrangement(arguments, of_run, gpus) for gpus in arguments.gpus]
    rehearse = cache(lambda shares, numbers: Rehearsal.of(size, shares, numbers))
    return [
        plan(size, how, device, arguments.efficiency, rehearse(Shares.of(size, how)[0], how.numbers))
        for how in arrangements
    ]


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise HywuError(f"--set {text} is not of the form NAME=VALUE.")
    return name.replace("-", "_"), value


def _arrangement(arguments: argparse.Namespace, of_run: dict[str, str], gpus: int) -> Arrangement:
    return Arrangement(
        gpus=gpus,
        batch_size=_whole("--batch-size", arguments.batch_size),
        accumulate=_whole("accumulate", of_run.get("accumulate", "1")),
        shard=gpus if arguments.shard is None else min(arguments.shard, gpus),
        sequence=min(arguments.sequence, gpus),
        backbone_sequence=min(arguments.backbone_sequence, gpus),
        precision=arguments.precision or "bf16",
        weights=of_run.get("weights", "fp32"),
        backbone=arguments.backbone_weights,
        checkpointing=arguments.gradient_checkpointing,
    )


def _whole(name: str, value: str | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError as error:
        raise HywuError(f"{name} is '{value}'; it must be a whole number.") from error
