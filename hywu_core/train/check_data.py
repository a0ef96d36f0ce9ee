"""`python -m hywu_core.train --check-data PATH`: the pairing report of a data set, before any model loads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.paired import CONVENTIONS, Options, PairedDataset
from ..data.paired.buckets import Buckets
from ..data.paired.report import make_report
from ..data.paired.scan import scan
from ..errors import HywuError
from ..images import check_file_path
from ..report import write_json

_SIDE, _DIVISOR = 1024, 16  # buckets of the report: a square megapixel, the step of most backbones


def add_arguments(parse: argparse.ArgumentParser) -> None:
    """Everything there is to say about a data set of the user's own."""
    group = parse.add_argument_group("a data set of your own")
    group.add_argument("--data", type=Path, metavar="PATH", help="learn from this data set")
    group.add_argument(
        "--check-data", type=Path, metavar="PATH", help="report on this data set and train nothing"
    )
    group.add_argument("--quick", action="store_true", help="read only the headers of its images")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the report to a file, too")
    group.add_argument(
        "--allow-missing-controls", action="store_true", help="keep samples without a control image"
    )
    group.add_argument("--convention", choices=CONVENTIONS, help="whose layout it is (default: found out)")
    group.add_argument(
        "--control-folder",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="PATH is a folder of targets; their sources are here (several times for several images)",
    )
    group.add_argument("--caption-ending", default=".txt", metavar=".EXT", help="of captions beside targets")
    group.add_argument("--base", type=Path, metavar="DIR", help="what relative paths of metadata start from")
    group.add_argument("--target-column", metavar="NAME", help="column of the edited image")
    group.add_argument(
        "--control-column",
        action="append",
        default=[],
        metavar="NAME",
        help="column of a source image (several times for several)",
    )
    group.add_argument("--prompt-column", metavar="NAME", help="column of the instruction")
    group.add_argument("--split", metavar="NAME", help="split of a Hugging Face data set (default: train)")
    group.add_argument(
        "--resolution",
        type=int,
        metavar="PIXELS",
        help=f"side of the square whose area the buckets have (default: the backbone's, or {_SIDE})",
    )


def refuse_stray(arguments: argparse.Namespace) -> None:
    """HywuError for arguments about a data set that would be without effect."""
    if arguments.data is not None:  # everything but what is about the report
        for flag, given in (("--json", arguments.json), ("--quick", arguments.quick)):
            if given:
                raise HywuError(f"{flag} is about the report on a data set; it goes with --check-data PATH.")
        return
    if flag := stray(arguments, add_arguments):
        raise HywuError(f"{flag} is about a data set; name that with --data PATH or --check-data PATH.")


def refuse_others(arguments: argparse.Namespace, known: argparse.ArgumentParser) -> None:
    """HywuError for arguments of `known`, the whole command, that a report on a data set knows nothing of."""
    alone = argparse.ArgumentParser()
    add_arguments(alone)
    own = vars(alone.parse_args([])).keys() - {"data"}
    if flag := _changed(arguments, {n: v for n, v in vars(known.parse_args([])).items() if n not in own}):
        raise HywuError(f"{flag} is without effect on the report of --check-data; leave it out.")


def stray(arguments: argparse.Namespace, add: Callable[[argparse.ArgumentParser], None]) -> str | None:
    """The first of the flags that `add` adds which is not at its default."""
    alone = argparse.ArgumentParser()
    add(alone)
    return _changed(arguments, vars(alone.parse_args([])))


def _changed(arguments: argparse.Namespace, defaults: Mapping[str, Any]) -> str | None:
    found = (name for name, default in defaults.items() if getattr(arguments, name) != default)
    return next(("--" + name.replace("_", "-") for name in found), None)


def options_of(arguments: argparse.Namespace) -> Options:
    """What the command line says about a data set."""
    return Options(
        convention=arguments.convention,
        control_folders=tuple(arguments.control_folder),
        caption_ending=arguments.caption_ending,
        base=arguments.base,
        target_column=arguments.target_column,
        control_columns=tuple(arguments.control_column),
        prompt_column=arguments.prompt_column,
        split=arguments.split,
        allow_missing_controls=arguments.allow_missing_controls,
    )


def check_data(arguments: argparse.Namespace) -> int:
    """Print the report. HywuError with one sentence, after it, where the data set cannot be trained on."""
    if arguments.json is not None:
        check_file_path(arguments.json)
    if (arguments.resolution or 0) < 0:
        raise HywuError(f"resolution is {arguments.resolution}; it must be at least 0.")
    buckets = Buckets((arguments.resolution or _SIDE) ** 2, _DIVISOR)
    data = PairedDataset.read(arguments.check_data, options_of(arguments))
    with _progress(len(data)) as on_sample:
        seen = scan(data, not arguments.quick, on_sample)
    report = make_report(data, seen, buckets, arguments.allow_missing_controls)
    print(report.to_text(), flush=True)  # noqa: T201
    if arguments.json is not None:
        write_json(arguments.json, report.to_dict())
    if sentence := report.sentence():
        raise HywuError(sentence)
    return 0


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where somebody sees it."""
    with tqdm(total=total, unit="sample", desc="images", disable=not sys.stderr.isatty()) as bar:
        yield lambda done: bar.update(done - bar.n)
