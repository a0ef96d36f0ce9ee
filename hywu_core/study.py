"""`python -m hywu_core.study NAME`: the paper's evidence, reproduced in small on the embedded models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .cli import check_folder, command, require
from .devices import resolve_device


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m hywu_core.study", description=__doc__)
    studies = parse.add_subparsers(dest="study", required=True)
    routing = _study(studies, "routing", "does an edit land on the operation that was asked for?")
    routing.add_argument(
        "--quick", action="store_true", help="one photograph and one wording: minutes on two cores"
    )
    quantise = _study(studies, "quantise", "what is lost with a generator in one or two bytes a weight?")
    quantise.add_argument(
        "--quick",
        action="store_true",
        help="one photograph, a quarter of the operations: minutes on two cores",
    )
    return parse


def _study(studies: argparse._SubParsersAction, name: str, question: str) -> argparse.ArgumentParser:
    """A study's own command line, as far as all have it."""
    study = studies.add_parser(name, help=question)
    study.add_argument(
        "--out", type=Path, default=Path(f"runs/{name}"), help="folder of the results (%(default)s)"
    )
    study.add_argument("--generator", type=Path, help="another generator file than the shipped one")
    study.add_argument("--device", default="cpu", help="cpu, cuda, mps ... (%(default)s)")
    study.add_argument("--steps", type=int, default=8, help="sampling steps (%(default)s)")
    return study


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parser().parse_args(argv)
    check_folder(arguments.out)
    resolve_device(arguments.device)
    require("scipy", "matplotlib", "diffusers", "tqdm")
    from .studies import quantise, routing

    study = {"routing": routing, "quantise": quantise}[arguments.study]
    result = study.run(arguments.out, arguments.generator, arguments.device, arguments.quick, arguments.steps)
    print(study.report(result))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
