"""The sizes a plan can be asked for by name: what the recipes train, and the paper's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

from ..errors import HywuError
from ..generator import GeneratorConfig
from . import plan_paper, plan_recipes
from .plan_sizes import PIXELS_PER_TOKEN, TrainSize
from .recipes import configure, recipe

_RECIPES = tuple(plan_recipes.BACKBONES)
_OURS: dict[str, Callable[[], TrainSize]] = {
    "embedded_demo": plan_recipes.embedded_demo,
    "embedded_generator": plan_recipes.embedded_generator,
}
_PAPERS: dict[str, Callable[[], TrainSize]] = {
    "qwen_image_edit_2b": partial(plan_paper.qwen_image_edit, "qwen_image_edit_2b", 2e9, 16),
    "qwen_image_edit_5b": partial(plan_paper.qwen_image_edit, "qwen_image_edit_5b", 5e9, 32),
    "qwen_image_edit_7b": partial(plan_paper.qwen_image_edit, "qwen_image_edit_7b", 7e9, 64),
    "hunyuan_image_3": plan_paper.hunyuan_image,
}
# What only a plan can be told, and what a run can be told that changes nothing of a step.
_OF_A_PLAN = ("n_condition", "pixels", "pictures", "n_text")
_OF_THE_STEP = ("rank", "n_layers", "mlp_ratio", "noise_levels")  # of what the embedded recipe can be told
_OF_NO_WEIGHT = ("steps", "lr", "seed", "device", "warmup", "checkpoint_every", "backbone", "encoder")
_OF_NO_WEIGHT += ("cache", "data", "data_options", "allow_download")


def size_names() -> tuple[str, ...]:
    """All names."""
    return (*_OURS, *_RECIPES, *_PAPERS)


def train_size(name: str, settings: Mapping[str, str]) -> TrainSize:
    """The size of a name, with `settings` changed: of a recipe, all that a run of it can be told.

    Raises HywuError for a name or a setting that does not exist, and for a value of no sense.
    """
    if name not in size_names():
        raise HywuError(f"There is no plan for '{name}'; there is one for {', '.join(size_names())}.")
    if name in _RECIPES:
        of_a_plan = {key: value for key, value in settings.items() if key in _OF_A_PLAN}
        return _changed(plan_recipes.paired(name, _without(settings, _OF_A_PLAN)), of_a_plan)
    if name in _OURS:  # the run refuses what it does not know
        known, of_a_plan = recipe(name), (*_OF_A_PLAN, *_OF_THE_STEP)
        configure(known, {k: v for k, v in settings.items() if k not in _OF_A_PLAN or k in known.settings})
        settings = _side(settings, "size")
        return _changed(_OURS[name](), {k: v for k, v in settings.items() if k in of_a_plan})
    left = _side(_without(settings, _OF_NO_WEIGHT), "resolution")
    return _changed(_PAPERS[name](), left)


def _side(settings: Mapping[str, str], called: str) -> dict[str, str]:
    """Settings with the side of the pictures under a plan's name; runs call it otherwise."""
    return {"pixels" if key == called else key: value for key, value in settings.items()}


def _without(settings: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {key: value for key, value in settings.items() if key not in names}


def _changed(size: TrainSize, settings: dict[str, str]) -> TrainSize:
    known = {each.name: each.type for each in fields(GeneratorConfig)}
    generator: dict[str, Any] = {}
    for name, value in settings.items():
        if name in ("rank", "noise_levels", *_OF_A_PLAN):
            number = _number(name, value, int)
            if number < 1:
                raise HywuError(f"{name} is {number}; it must be at least 1.")
            size = _with(size, name, number)
        elif name in known and name not in ("condition_dim", "output_gain"):
            generator[name] = _number(name, value, float if "float" in str(known[name]) else int)
        else:
            raise HywuError(
                f"A plan has no setting '{name}'; it has rank, noise_levels, n_condition, pixels, pictures, "
                f"n_text, and those of the generator: d_model, n_layers, n_heads, mlp_ratio, accumulation."
            )
    return replace(size, generator=replace(size.generator, **generator))


def _with(size: TrainSize, name: str, number: int) -> TrainSize:
    if name == "rank":
        spec = replace(size.spec, rank=number, alpha=number * size.spec.scale)
        return replace(size, spec=spec)
    if name == "pixels":
        if number % PIXELS_PER_TOKEN:
            raise HywuError(f"pixels is {number}; it must be a multiple of {PIXELS_PER_TOKEN}.")
        return replace(size, backbone=replace(size.backbone, side=number // PIXELS_PER_TOKEN))
    if name in ("pictures", "n_text"):
        return replace(size, backbone=replace(size.backbone, **{name: number}))
    return replace(size, **{name: number})


def _number(name: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise HywuError(f"{name} is '{value}'; it must be a number ({kind.__name__}).") from error
