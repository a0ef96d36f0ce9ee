"""`python -m hywu_core.train --plan`: what a run would take, before it is begun."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cache
from typing import Any

from ..cli import require
from ..errors import HywuError
from ..report import check_json, write_json
from .check_data import stray
from .given import begin
from .parallel import parallel_config
from .plan_arrangement import Arrangement, Shares
from .plan_devices import EFFICIENCY, accelerator, accelerator_names
from .plan_model import TrainPlan, plan
from .plan_names import size_names, train_size
from .plan_report import report
from .plan_step import Rehearsal
from .recipes import names, recipe

_GB = 1e9
# Settings of a run that are no part of a size.
_OF_THE_BACKBONE = ("quantize", "backbone_dtype")
_AS_A_RUN = ("steps", "warmup", "sample_every", *_OF_THE_BACKBONE)  # what a plan is refused for as a run is
_OF_THE_RUN = ("batch_size", "accumulate", "precision", "weights", "ema", *_OF_THE_BACKBONE)


def add_arguments(parse: argparse.ArgumentParser) -> None:
    """What there is to say about the machines of a run that is only planned."""
    group = parse.add_argument_group(
        "a plan before a run",
        f"for --recipe {', '.join(size_names())}; the other flags about a step mean what they mean in a run.",
    )
    group.add_argument("--plan", action="store_true", help="print memory, work, traffic and time of a step")
    group.add_argument(
        "--gpus", type=int, nargs="+", default=[1], metavar="N", help="GPUs in all; several to compare"
    )
    group.add_argument(
        "--gpu", default="h100", choices=accelerator_names(), help="their kind (default: %(default)s)"
    )
    group.add_argument("--memory", type=float, metavar="GB", help="of each (default: as the kind has)")
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


def plan_command(arguments: argparse.Namespace, given: Mapping[str, str]) -> int:
    """Print the plan, or how wrong plans are; returns the exit code.

    given: the settings of the run that are named on the command line.
    """
    for name in ("resume", "out", "quick"):  # all else is about the run that is planned
        if getattr(arguments, name):
            raise HywuError(f"--{name} is without effect on a plan; leave it out.")
    check_json(arguments.json)
    require("diffusers")
    if arguments.measure:
        from .plan_measure import measure, measured_report

        result = measure(arguments.device or "cpu")
        print(measured_report(result))  # noqa: T201
    else:
        plans = _plans(arguments, given)
        print(report(plans))  # noqa: T201
        result = {"plans": [each.to_dict() for each in plans]}
    if arguments.json is not None:
        write_json(arguments.json, result)
    return 0


def _plans(arguments: argparse.Namespace, given: Mapping[str, str]) -> list[TrainPlan]:
    of_run = {name: given[name] for name in _OF_THE_RUN if name in given}
    settings = {name: value for name, value in given.items() if name not in _OF_THE_RUN}
    if settings.pop("adaptation", "hywu") != "hywu":
        raise HywuError(f"Plans are made for the adaptation hywu, not for {given['adaptation']}.")
    name = arguments.recipe or names()[0]  # as a run would
    if name in names():  # a run of this recipe may know no such thing
        begin(recipe(name), {each: given[each] for each in _AS_A_RUN if each in given})
        of_run = {"precision": recipe(name).defaults.precision} | of_run
    size = train_size(name, settings)
    device = accelerator(arguments.gpu)
    if arguments.memory is not None:
        device = device.with_memory(arguments.memory * _GB)
    if not (device.memory > 0 and 0 < arguments.efficiency <= 1):
        raise HywuError(
            f"The memory is {device.memory / _GB:g} GB and the efficiency {arguments.efficiency:g}; the one "
            "must be positive and the other a share of at most 1."
        )
    arrangements = [_arrangement(arguments, of_run, size.frozen, gpus) for gpus in arguments.gpus]
    rehearse = cache(lambda shares, numbers: Rehearsal.of(size, shares, numbers))
    return [
        plan(size, how, device, arguments.efficiency, rehearse(Shares.of(size, how)[0], how.numbers))
        for how in arrangements
    ]


def _arrangement(
    arguments: argparse.Namespace, of_run: Mapping[str, str], frozen: str, gpus: int
) -> Arrangement:
    """The processes as `parallel.py` arranges them: weights are cut up over shards and sequences alike."""
    if gpus < 1:
        raise HywuError(f"gpus is {gpus}; it must be at least 1.")
    processes = parallel_config(arguments).over(gpus)
    batch = of_run.get("batch_size")
    return Arrangement(
        gpus=gpus,
        batch_size=None if batch is None else _number("batch_size", batch, int),
        accumulate=_number("accumulate", of_run.get("accumulate", "1"), int),
        shard=processes.shard * processes.sequence,
        sequence=processes.sequence,
        backbone_sequence=processes.sequence if processes.ulysses else 1,
        precision=of_run.get("precision", "bf16"),
        weights=of_run.get("weights", "fp32"),
        ema=_number("ema", of_run.get("ema", "0"), float),
        backbone=of_run.get("quantize") or of_run.get("backbone_dtype", frozen),
        checkpointing=processes.recompute,
    )


def _number(name: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise HywuError(f"{name} is '{value}'; it must be {what}.") from error
