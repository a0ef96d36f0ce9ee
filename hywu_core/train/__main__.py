"""`python -m hywu_core.train`: train a shipped model, or without arguments a short demonstration."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import torch

from ..cli import command
from ..errors import HywuError
from . import recipes
from .checkpoint import read_checkpoint
from .loop import train
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


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parser().parse_args(argv)
    given = overrides(arguments)
    if arguments.resume is not None:
        if arguments.out is not None and arguments.out != arguments.resume:
            raise HywuError(f"--resume continues in {arguments.resume}; leave out --out {arguments.out}.")
        _, run = read_checkpoint(arguments.resume)
        if arguments.recipe not in (None, run["recipe"]):
            raise HywuError(f"{arguments.resume} is a run of '{run['recipe']}', not of '{arguments.recipe}'.")
        if given:
            raise HywuError(f"A resumed run keeps its settings; leave out {', '.join(sorted(given))}.")
        arguments.recipe, given, out = run["recipe"], {**run["config"], **run["settings"]}, arguments.resume
    else:
        arguments.recipe = arguments.recipe or recipes.names()[0]
        out = arguments.out or Path("runs") / arguments.recipe
    chosen = recipes.recipe(arguments.recipe)
    config, settings = recipes.configure(chosen, given)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HywuError(f"The run folder {out} cannot be made: {error}.") from error
    run = {"recipe": chosen.name, "config": config.to_dict(), "settings": settings, "versions": _versions()}
    (out / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    task = chosen.build(config, settings)
    try:
        losses = train(task, config, out, run, resume=arguments.resume is not None)
    except KeyboardInterrupt:
        print(f"\nStopped. Continue with: python -m hywu_core.train --resume {out}", file=sys.stderr)  # noqa: T201
        return 130
    save_loss_curve(losses, out / "loss.png", f"{chosen.name}, {config.steps} steps of {config.batch_size}")
    sentence = task.finish(out)
    (out / "result.txt").write_text(sentence + "\n", encoding="utf-8")
    print(f"{sentence}\nEverything is in {out}.")  # noqa: T201
    return 0


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__}


if __name__ == "__main__":
    sys.exit(command(main))
