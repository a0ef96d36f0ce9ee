"""`python -m hywu_core.bench NAME`: how fast it is and how much memory it takes, beside what others offer.

A bench is a module of this room with three functions: `configure(parser)` adds its options, `run(arguments)`
measures and returns plain data, `report(result)` turns that into the text which is printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..cli import command
from ..report import as_json, check_json, write_json
from . import apply, generator, train

_PRINTED = Path("-")
BENCHES = {"apply": apply, "generator": generator, "train": train}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m hywu_core.bench", description=__doc__.split("\n")[0])
    benches = parse.add_subparsers(dest="bench", required=True)
    for name, bench in BENCHES.items():
        one = benches.add_parser(name, help=bench.__doc__.split("\n")[0], description=bench.__doc__)
        one.add_argument(
            "--json",
            type=Path,
            nargs="?",
            const=_PRINTED,
            metavar="FILE",
            help="also write the numbers to a JSON file; without FILE print them instead of the table",
        )
        bench.configure(one)
    return parse


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parser().parse_args(argv)
    printed = arguments.json == _PRINTED
    path = None if printed else arguments.json
    check_json(path)
    bench = BENCHES[arguments.bench]
    result = bench.run(arguments)
    print(as_json(result) if printed else bench.report(result))  # noqa: T201
    if path is not None:
        write_json(path, result)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
