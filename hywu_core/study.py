"""`python -m hywu_core.study NAME`: the paper's evidence, reproduced in small on the embedded models."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .cli import check_folder, command, require
from .studies import QUESTIONS

if TYPE_CHECKING:
    from .studies.frame import Study

logger = logging.getLogger("hywu")


def names_parser() -> argparse.ArgumentParser:
    """The command line up to the study's name."""
    questions = "\n".join(f"  {name:<10} {question}" for name, question in QUESTIONS.items())
    parse = argparse.ArgumentParser(
        prog="python -m hywu_core.study",
        description=__doc__,
        epilog=f"studies:\n{questions}\n\nNAME --help tells the options of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parse.add_argument("study", choices=QUESTIONS, metavar="NAME", help="one of the studies below")
    return parse


def study_parser(name: str, study: Study) -> argparse.ArgumentParser:
    """The command line of one study: what all have, and the fields of its config."""
    parse = argparse.ArgumentParser(prog=f"python -m hywu_core.study {name}", description=QUESTIONS[name])
    parse.add_argument(
        "--out",
        type=Path,
        default=Path(f"runs/{name}"),
        help="folder of the results; the same command again goes on with what is in it (%(default)s)",
    )
    parse.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="measure nothing: write report and figure anew from the result.json in DIR",
    )
    parse.add_argument("--quick", action="store_true", help="smaller: minutes on two cores")
    for option, kind, full, quick, says in study.config.options():
        defaults = f"{full}" if full == quick else f"{full}, with --quick {quick}"
        parse.add_argument(
            f"--{option.replace('_', '-')}",
            type=kind,
            default=argparse.SUPPRESS,
            help=f"{says} ({defaults})" if full is not None else says,
        )
    return parse


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    name = names_parser().parse_args(argv[:1]).study
    require("scipy", "sklearn", "skimage", "flip_evaluator", "matplotlib", "diffusers", "tqdm")
    study: Study = import_module(f".studies.{name}", __package__).STUDY
    given = vars(study_parser(name, study).parse_args(argv[1:]))
    out, redrawn, quick = (given.pop(key) for key in ("out", "report", "quick"))
    from .studies.frame import carry_out, page, redraw

    if redrawn is not None:
        result = redraw(name, study, redrawn)
    else:
        check_folder(out)
        config = study.config.made_from(given, quick)
        line = f"python -m hywu_core.study {shlex.join(argv)}"
        try:
            result = carry_out(name, study, config, out, line, quick)
        except KeyboardInterrupt:
            if (out / "parts").is_dir():
                logger.info("What is finished is in %s; the same command goes on with it.", out / "parts")
            raise
    print(page(study, result))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
