"""`python -m hywu_core.train`: train a shipped model, or without arguments a short demonstration."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from .. import __version__
from ..cli import INTERRUPTED, check_folder, command, quoted, require
from ..devices import resolve_device
from ..errors import HywuError
from ..storage import atomic_path
from . import plan as planning
from . import recipes
from .check_data import add_arguments, check_data, refuse_others, refuse_stray
from .checkpoint_files import describe, newest, require_storage
from .config import TrainConfig
from .given import begin, overrides
from .loop import Task, train
from .parallel import Parallel, ParallelConfig, add_parallel_arguments, parallel_config
from .processes import enough_memory, one_speaks
from .progress import save_loss_curve
from .run_lock import alone
from .watch import RunWatch, device_peak


def parser() -> argparse.ArgumentParser:
    """The command line."""
    lines = "\n".join(f"  {name}: {recipes.recipe(name).summary}" for name in recipes.names())
    parse = argparse.ArgumentParser(
        prog="python -m hywu_core.train",
        description="Train a HY-WU generator, or one of the embedded models.\n\nrecipes:\n" + lines,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parse.add_argument("--recipe", default=None, help=f"what to train (default: {recipes.names()[0]})")
    parse.add_argument("--out", type=Path, help="run folder (default: runs/RECIPE)")
    parse.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in this folder")
    parse.add_argument("--steps", help="optimiser steps")
    parse.add_argument("--batch-size", dest="batch_size", help="rows per step")
    parse.add_argument("--lr", help="peak learning rate")
    parse.add_argument("--seed", help="seed of initialisation, data and noise")
    parse.add_argument("--device", help="cpu, cuda, mps, ...")
    parse.add_argument("--adaptation", help="what learns: hywu, shared_lora, single_lora or sft")
    parse.add_argument("--backbone", metavar="MODEL", help="folder or hub id of the backbone")
    parse.add_argument(
        "--encoder", metavar="MODEL", help="folder or hub id of a SigLIP2, or 'backbone' for its own text"
    )
    parse.add_argument("--quantize", help="keep the frozen backbone in int8, fp8 or nf4")
    parse.add_argument("--allow-download", action="store_const", const=True, help="fetch models from the hub")
    parse.add_argument("--cache", type=Path, metavar="DIR", help="folder of encodings (default: runs/cache)")
    parse.add_argument("--precision", help="fp32, tf32 or bf16 (autocast)")
    parse.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting of the recipe"
    )
    add_parallel_arguments(parse)
    add_arguments(parse)
    planning.add_arguments(parse)
    return parse


_PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "torchao", "bitsandbytes")
_MODELS = {  # of `Task.about`, as people call them
    "encoder": "condition encoder",
    "backbone_encoders": "backbone's autoencoder or text encoder",
    "backbone": "backbone",
    "kept": "generator that the run keeps a share of",
}


@dataclass(frozen=True)
class Plan:
    """What a command line asks for."""

    recipe: recipes.Recipe
    config: TrainConfig
    settings: recipes.Settings
    out: Path
    resume: bool
    parallel: ParallelConfig  # not part of what the run is: it can be continued in another arrangement

    def describe(self) -> dict[str, object]:
        """Plain data with which the same run can be made again."""
        versions = {"python": platform.python_version(), "hywu": __version__}
        versions |= {package: version(package) for package in _PACKAGES if find_spec(package)}
        return {
            "recipe": self.recipe.name,
            "config": self.config.to_dict(),
            "settings": self.settings,
            "versions": versions,
        }

    def build(self, parallel: Parallel) -> Task:
        """Make the task; a resumed one from its checkpoint alone, unless it keeps some of its start."""
        alone = self.resume and "init" in self.settings and not self.settings.get("keep")
        forgotten = {"init": ""} if alone else {}
        return self.recipe.build(self.config, self.settings | forgotten, parallel)


def plan(arguments: argparse.Namespace) -> Plan:
    """Everything that can be wrong with the command line, before any model loads."""
    return _resumed(arguments) if arguments.resume is not None else _fresh(arguments)


def _fresh(arguments: argparse.Namespace) -> Plan:
    chosen = recipes.recipe(arguments.recipe or recipes.names()[0])
    config, settings = begin(chosen, overrides(arguments))
    out = arguments.out or Path("runs") / chosen.name
    check_folder(out)
    if newest(out) is not None:
        found = describe(out)
        done, steps = found.step, found.run["config"]["steps"]
        if done < steps:
            raise HywuError(
                f"{out} holds an unfinished run, at step {done} of {steps}: continue it with "
                f"--resume {quoted(out)}, or name another folder with --out."
            )
    return Plan(chosen, config, settings, out, False, parallel_config(arguments))


def _resumed(arguments: argparse.Namespace) -> Plan:
    out = arguments.resume
    if arguments.out is not None and arguments.out != out:
        raise HywuError(f"--resume continues in {out}; leave out --out {arguments.out}.")
    if given := overrides(arguments):
        raise HywuError(f"A resumed run keeps its settings; leave out {', '.join(sorted(given))}.")
    run = describe(out).run
    if arguments.recipe not in (None, run["recipe"]):
        raise HywuError(f"{out} is a run of '{run['recipe']}', not of '{arguments.recipe}'.")
    chosen = recipes.recipe(run["recipe"])
    config, settings = recipes.configure(chosen, {**run["config"], **run["settings"]})
    return Plan(chosen, config, settings, out, True, parallel_config(arguments))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parser().parse_args(argv)
    if arguments.check_data is not None:
        refuse_others(arguments, parser())
        return check_data(arguments)
    if arguments.plan:
        return planning.plan_command(arguments, overrides(arguments))
    refuse_stray(arguments)
    planning.refuse_stray(arguments)
    with one_speaks():
        with one_speaks(HywuError):  # every process reads the same command line
            planned = plan(arguments)
            require("diffusers", "matplotlib")
            if planned.config.weights == "bf16":
                require("torchao")  # by the optimiser
            require_storage()  # before the data is prepared
        with Parallel.joined(planned.parallel, planned.config.device) as parallel, enough_memory():
            parallel.dealing(planned.settings.get("noise_levels", 1), planned.config.accumulate).check(
                planned.config.batch_size
            )
            with alone(planned.out, parallel):  # before the long preparation of the data
                return _run(planned, parallel)


def _run(planned: Plan, parallel: Parallel) -> int:
    config, out, run = planned.config, planned.out, planned.describe()
    task = planned.build(parallel)  # the long preparation of the data comes before anything is written
    run["data"] = task.about()
    before = describe(out) if planned.resume else None  # again: now no other run can change it
    if before is not None:
        _check_same(out, before.run.get("data", {}), run["data"])
    if parallel.main:
        _write_text(out / "run.json", json.dumps(run, indent=2))
    parallel.barrier()
    try:
        first = before.step if before is not None else 0
        peak = device_peak(resolve_device(config.device), config.precision) if parallel.main else 0.0
        with RunWatch(out, first, peak) if parallel.main else nullcontext() as watch:
            losses = train(task, config, out, run, planned.resume, parallel, watch)
        parallel.leave()  # nobody waits while the first process measures what has come of it
        if not parallel.main:
            return 0
        title = f"{planned.recipe.name}, {config.steps} steps of {config.batch_size}"
        save_loss_curve(losses, out / "loss.png", title)
        sentence = task.finish(out)
    except KeyboardInterrupt:
        if newest(out) is None or not parallel.main:
            raise
        print(f"Stopped. Continue with: python -m hywu_core.train --resume {quoted(out)}", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    _write_text(out / "result.txt", sentence)
    print(f"Everything is in {out}.\n{sentence}")  # noqa: T201
    return 0


def _check_same(out: Path, before: dict[str, object], now: dict[str, object]) -> None:
    """HywuError where a run would go on with other data or models than it began with.

    What an earlier version did not note down is not compared.
    """
    if before.get("sha256") != now.get("sha256"):
        raise HywuError(
            f"The data set has changed since the run in {out} began ({before.get('samples')} samples then, "
            f"{now.get('samples')} now, or other pictures, words or repeats); put it back, or begin a new "
            "run."
        )
    for name, model in _MODELS.items():
        if _differs(before.get(name), now.get(name)):
            raise HywuError(
                f"The {model} has changed since the run in {out} began, it has other files; put them back, "
                "or begin a new run."
            )


def _differs(before: object, now: object) -> bool:
    """Whether what was noted down is not so any more; of what has names, by those that were noted down."""
    if isinstance(before, dict) and isinstance(now, dict):
        return any(now.get(name) != value for name, value in before.items())
    return before is not None and now is not None and before != now


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(command(main))
