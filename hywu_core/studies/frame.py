"""The shape that all studies have: a config, a run that is kept in parts, a report and a figure of its JSON.

    STUDY = Study(BlurConfig, run, report, figure)     # at the end of studies/blur.py, named in QUESTIONS

`run` measures; `report` and `figure` see only what is in `result.json`, so both can be drawn again from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch

from .. import __version__
from ..devices import resolve_device
from ..embedded import AUTOENCODER, BACKBONE, GENERATOR
from ..embedded.text import TEXT_ENCODER
from ..errors import HywuError, require_positive
from ..storage import atomic_path, file_sha256
from . import QUESTIONS
from .statistics import INTERVALS
from .work import Work

_SHOWN_OF_HASH = 8  # digits of a SHA-256 that a report shows
Result = dict[str, Any]  # plain data, as JSON has it


def option(default: Any, says: str, quick: Any = None) -> Any:
    """A field of a study's config that is an option of its command; `quick` is its default with `--quick`."""
    return field(default=default, metadata={"help": says, "quick": default if quick is None else quick})


@dataclass(frozen=True)
class StudyConfig:
    """What all studies can be told. A study's own config adds to it with `option` and checks what it adds.

    Fields are of the types int, float and str, a generator's file aside.
    """

    seed: int = option(0, "of all that is drawn at random")
    device: str = option("cpu", "cpu, cuda, mps ..., or auto: the best there is")

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:  # scikit-learn's, which projects, takes no more
            raise HywuError(f"seed is {self.seed}; it must be between 0 and 2^32 - 1.")
        resolve_device(self.device)

    @property
    def computes_on(self) -> torch.device:
        """The device that `device` names here."""
        return resolve_device(self.device)

    def require_positive(self, *names: str) -> None:
        """HywuError unless these fields are at least 1."""
        require_positive(self, *names)

    def require_between(self, name: str, low: int, high: int) -> None:
        """HywuError unless this field is from `low` to `high`."""
        if not low <= getattr(self, name) <= high:
            raise HywuError(f"{name} is {getattr(self, name)}; it must be from {low} to {high}.")

    def require_rate(self, name: str) -> None:
        """HywuError unless this field, a learning rate, is above 0 and at most 1."""
        if not 0 < getattr(self, name) <= 1:
            raise HywuError(f"{name} is {getattr(self, name)}; it must be above 0 and at most 1.")

    @classmethod
    def options(cls) -> list[tuple[str, type, Any, Any, str]]:
        """(name, type, default, default with --quick, help) of every option."""
        hints = get_type_hints(cls)
        kinds = {f.name: Path if hints[f.name] == (Path | None) else hints[f.name] for f in fields(cls)}
        return [
            (f.name, kinds[f.name], f.default, f.metadata["quick"], f.metadata["help"]) for f in fields(cls)
        ]

    @classmethod
    def made_from(cls, given: Mapping[str, Any], quick: bool) -> StudyConfig:
        """The config of a command line: what it gave, and for the rest the defaults. HywuError as always."""
        return cls(
            **{name: given.get(name, fast if quick else full) for name, _, full, fast, _ in cls.options()}
        )

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in asdict(self).items()}


@dataclass(frozen=True)
class OfGenerator(StudyConfig):
    """What a study can be told that looks at a finished generator; another trains its own, or none."""

    generator: Path | None = option(None, "another generator file than the shipped one")  # noqa: RUF009


@dataclass(frozen=True)
class Study:
    """One study.

    run(config, work) measures and returns plain data; every unit of it worth keeping goes through `work`.
    report(result) is its page in Markdown, figure(result, path) draws its PNG; both from the JSON alone.
    """

    config: type[StudyConfig]
    run: Callable[[Any, Work], Result]
    report: Callable[[Result], str]
    figure: Callable[[Result, Path], None] | None = None


def carry_out(
    name: str, study: Study, config: StudyConfig, out: Path, command: str = "", quick: bool = False
) -> Result:
    """Run a study, or go on with it, then write `result.json`, `report.md` and `NAME.png` into `out`.

    Raises HywuError if `out` holds parts of a run with another config or other weights.
    """
    settings = {"study": name, "config": config.plain(), "weights": _weights(config)}
    work = Work(out, settings)
    measured = study.run(config, work)
    code = {
        "hywu": __version__,
        "torch": torch.__version__,
        "revisions": sorted(work.revisions),  # now and of every part; one, unless the run was resumed
    }
    head = {"study": name, "question": QUESTIONS[name], "command": command, "quick": quick}
    head["intervals"] = INTERVALS
    result = head | {"config": settings["config"], "code": code, "weights": settings["weights"]} | measured
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "result.json") as temporary:
        temporary.write_text(dumps(result), encoding="utf-8")
    return redraw(name, study, out)


def redraw(name: str, study: Study, out: Path) -> Result:
    """Write the report and the figure of the `result.json` in `out` again. HywuError where there is none."""
    path = out / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HywuError(f"There is no {path}; run the study first.") from None
    except ValueError as error:
        raise HywuError(f"{path} is not a result of a study: {error}.") from error
    if not isinstance(result, dict) or result.get("study") != name:
        raise HywuError(f"{path} is not a result of the study '{name}'.")
    with atomic_path(out / "report.md") as temporary:
        temporary.write_text(page(study, result), encoding="utf-8")
    if study.figure is not None:
        with atomic_path(out / f"{name}.png") as temporary:
            study.figure(result, temporary)
    return result


def page(study: Study, result: Result) -> str:
    """The report, and the beginnings of the hashes by which a reader knows the weights that it is of."""
    used = [name for name in result["weights"] if name in _files(study.config)]
    told = ", ".join(f"{name.replace('_', ' ')} {result['weights'][name][:_SHOWN_OF_HASH]}" for name in used)
    return f"{study.report(result)}\nWeights: {told}.\n"


def dumps(result: Result) -> str:
    """JSON to read: lists of numbers stand on one line. ValueError for what is not finite."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[[-+\d.eE,\s]+\]", lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"


def _weights(config: StudyConfig) -> dict[str, str]:
    """SHA-256 of every file of weights that a study uses."""
    files = _files(type(config))
    if "generator" in files:
        files["generator"] = config.generator or GENERATOR
    return {name: file_sha256(path) for name, path in files.items() if path.is_file()}


def _files(config: type[StudyConfig]) -> dict[str, Path]:
    """The shipped files of weights that a study of such a config uses."""
    files = {"autoencoder": AUTOENCODER, "backbone": BACKBONE, "text_encoder": TEXT_ENCODER}
    return files | ({"generator": GENERATOR} if issubclass(config, OfGenerator) else {})
