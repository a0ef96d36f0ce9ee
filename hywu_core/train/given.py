"""What a command line says of a new run: named once, with whole paths, and complete."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import HywuError
from .check_data import options_of
from .config import TrainConfig
from .paired_recipe import BACKBONE_TEXT, GENERATOR_SETTINGS
from .processes import first_process
from .recipes import Recipe, Settings, configure

log = logging.getLogger("hywu")
_NAMED = ("steps", "batch_size", "lr", "seed", "device", "precision", "adaptation", "backbone", "encoder")
_NAMED += ("quantize", "allow_download", "resolution", "data", "cache")
_PLACES = ("data", "cache", "init")  # always in the file system
_MODELS = ("backbone", "encoder")  # they may be hub ids
_FLAGS = {"true": "1", "false": "0"}
# Settings that only some of what can learn knows what to do with.
_NOT_OF = {
    "sft": ("rank", "alpha", "targets", "strength_penalty"),
    "shared_lora": (),
    "single_lora": (),
}


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings named on the command line; HywuError where two of them contradict each other."""
    given: dict[str, Any] = {}
    for said, name, value in _said(arguments):
        value = whole(name, value)
        if name in given and _number(given[name]) != _number(value):
            raise HywuError(f"{name} is given twice, as {given[name]} and with {said}; leave one out.")
        given.setdefault(name, value)
    if arguments.data is not None:
        given["data_options"] = options_of(arguments).to_dict()
    return given


def _said(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Any]]:
    """(as it was written, name, value) of every setting."""
    for name in _NAMED:
        if (value := getattr(arguments, name)) is not None:
            yield f"--{name.replace('_', '-')} {value}", name, value
    for assignment in arguments.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise HywuError(f"--set {assignment} is not of the form NAME=VALUE.")
        yield f"--set {assignment}", name.replace("-", "_"), value


def _number(value: Any) -> Any:
    """A value as what it will become, as far as it looks like a number: 0.001 and 1e-3 are the same."""
    text = str(value)
    try:
        return float(_FLAGS.get(text.lower(), text))
    except ValueError:
        return text


def whole(name: str, value: Any) -> Any:
    """A setting, the whole path where it is one: a run may be continued from elsewhere."""
    if value in ("", None) or (name, value) == ("encoder", BACKBONE_TEXT):
        return value
    if name in _PLACES or (name in _MODELS and os.path.exists(value)):
        return str(Path(value).resolve())
    return value


def begin(chosen: Recipe, given: Settings) -> tuple[TrainConfig, Settings]:
    """The settings of a new run: what depends on others and is not given follows them.

    HywuError as `configure`, and for a setting that would have no effect on this recipe; what has none on
    this adaptation is logged.
    """
    config, settings = configure(chosen, given)
    config = _warmed_up(chosen, config, "warmup" in given)
    if "rank" in given and "alpha" in settings and "alpha" not in given:
        settings["alpha"] = settings["rank"] * chosen.settings["alpha"] / chosen.settings["rank"]
    if config.sample_every and "sample_steps" not in settings:
        raise HywuError(
            f"sample_every is without effect on {chosen.name}, which shows nothing; leave it out."
        )
    _tell_idle(settings, given)
    return config, {name: whole(name, value) for name, value in settings.items()}


def _warmed_up(chosen: Recipe, config: TrainConfig, said: bool) -> TrainConfig:
    """A short run warms up for at most a tenth of it; HywuError where it is told to do nothing else."""
    if not said:
        short = config.steps < chosen.defaults.steps
        return replace(config, warmup=min(config.warmup, max(1, config.steps // 10))) if short else config
    if config.warmup >= config.steps > 1:
        raise HywuError(
            f"warmup is {config.warmup}, and the run has only {config.steps} steps: its rate would rise to "
            "the end; take a smaller warmup."
        )
    return config


def _tell_idle(settings: Settings, given: Settings) -> None:
    if not first_process():
        return
    kind = settings.get("adaptation", "hywu")
    if kind in _NOT_OF:
        idle = [name for name in (*GENERATOR_SETTINGS, "encoder", *_NOT_OF[kind]) if name in given]
        if idle:
            log.warning("Of no effect on %s: %s.", kind, ", ".join(idle))
    elif "accumulation" in given and "accumulate" not in given:
        log.warning("accumulation is of the generator's ranks; micro-batches of a step are accumulate=N.")
