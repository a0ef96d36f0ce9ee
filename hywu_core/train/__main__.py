"""`python -m hywu_core.train`: train a shipped model, or without arguments a short demonstration."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from ..cli import INTERRUPTED, check_folder, command, require
from ..errors import HywuError
from ..storage import atomic_path
from . import plan as planning
from . import recipes
from .check_data import add_arguments, check_data, refuse_stray
from .checkpoint import FILE_NAME, read_checkpoint
from .config import TrainConfig
from .loop import Task, train
from .progress import save_loss_curve


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
    parse.add_argument("--precision", help="fp32, tf32 or bf16 (autocast)")
    parse.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting of the recipe"
    )
    add_arguments(parse)
    planning.add_arguments(parse)
    return parse


def overrides(arguments: argparse.Namespace) -> dict[str, str]:
    """The settings named on the command line."""
    named = ("steps", "batch_size", "lr", "seed", "device", "precision")
    given = {name: value for name in named if (value := getattr(arguments, name)) is not None}
    for assignment in arguments.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise HywuError(f"--set {assignment} is not of the form NAME=VALUE.")
        given[name.replace("-", "_")] = value
    return given


@dataclass(frozen=True)
class Plan:
    """What a command line asks for."""

    recipe: recipes.Recipe
    config: TrainConfig
    settings: recipes.Settings
    out: Path
    resume: bool

    def describe(self) -> dict[str, object]:
        """Plain data with which the same run can be made again."""
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        return {
            "recipe": self.recipe.name,
            "config": self.config.to_dict(),
            "settings": self.settings,
            "versions": versions,
        }

    def build(self) -> Task:
        """Make the task. A resumed one starts from its checkpoint alone, wherever it first started from."""
        forgotten = {"init": ""} if self.resume and "init" in self.settings else {}
        return self.recipe.build(self.config, self.settings | forgotten)


def plan(arguments: argparse.Namespace) -> Plan:
    """Everything that can be wrong with the command line, before any model loads."""
    return _resumed(arguments) if arguments.resume is not None else _fresh(arguments)


def _fresh(arguments: argparse.Namespace) -> Plan:
    chosen = recipes.recipe(arguments.recipe or recipes.names()[0])
    config, settings = recipes.configure(chosen, overrides(arguments))
    out = arguments.out or Path("runs") / chosen.name
    check_folder(out)
    if (out / FILE_NAME).is_file():
        tensors, run = read_checkpoint(out)
        done, steps = len(tensors["losses"]), run["config"]["steps"]
        if done < steps:
            raise HywuError(
                f"{out} holds an unfinished run, at step {done} of {steps}: continue it with --resume {out}, "
                "or name another folder with --out."
            )
    return Plan(chosen, config, settings, out, resume=False)


def _resumed(arguments: argparse.Namespace) -> Plan:
    out = arguments.resume
    if arguments.out is not None and arguments.out != out:
        raise HywuError(f"--resume continues in {out}; leave out --out {arguments.out}.")
    if given := overrides(arguments):
        raise HywuError(f"A resumed run keeps its settings; leave out {', '.join(sorted(given))}.")
    _, run = read_checkpoint(out)
    if arguments.recipe not in (None, run["recipe"]):
        raise HywuError(f"{out} is a run of '{run['recipe']}', not of '{arguments.recipe}'.")
    chosen = recipes.recipe(run["recipe"])
    config, settings = recipes.configure(chosen, {**run["config"], **run["settings"]})
    return Plan(chosen, config, settings, out, resume=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parser().parse_args(argv)
    if arguments.check_data is not None:
        return check_data(arguments)
    if arguments.plan:
        return planning.plan_command(arguments)
    refuse_stray(arguments)
    planning.refuse_stray(arguments)
    planned = plan(arguments)
    require("diffusers", "matplotlib")
    config, out, run = planned.config, planned.out, planned.describe()
    task = planned.build()  # the long preparation of the data comes before anything is written
    out.mkdir(parents=True, exist_ok=True)
    _write_text(out / "run.json", json.dumps(run, indent=2))
    try:
        losses = train(task, config, out, run, planned.resume)
        title = f"{planned.recipe.name}, {config.steps} steps of {config.batch_size}"
        save_loss_curve(losses, out / "loss.png", title)
        sentence = task.finish(out)
    except KeyboardInterrupt:
        if not (out / FILE_NAME).is_file():
            raise
        print(f"Stopped. Continue with: python -m hywu_core.train --resume {out}", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    _write_text(out / "result.txt", sentence)
    print(f"Everything is in {out}.\n{sentence}")  # noqa: T201
    return 0


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(command(main))
