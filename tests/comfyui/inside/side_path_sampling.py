"""The side path under ComfyUI's own samplers: rows, branches, areas, splitting, schedule, merging."""

from __future__ import annotations

import json

import flux  # isort: skip (opens ComfyUI)
import comfy.sample
import torch
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from flux import IMAGES, adapters, backbone, beside, cond, gap, noise, sample, shadowed
from pack.hywu_core.apply.comfy import Where, apply_adapter
from pack.hywu_core.errors import HywuError
from pack.hywu_core.lora import Adapter
from torch import Tensor

AREA = {"area": (4, 6, 2, 4), "strength": 0.7, "set_area_to_bounds": False}


def rows_of(base: ModelPatcher, adapter: Adapter, area: bool) -> tuple[Tensor, Tensor]:
    """A batch with a LoRA for each image, and its images one by one."""

    def conds(rows: slice | None = None) -> tuple[list, list]:
        positive = [cond(2, rows), *([cond(4, rows, **AREA)] if area else [])]
        return positive, [cond(3, rows)]

    together = sample(beside(base, adapter), *conds())
    singly = []
    for i in range(IMAGES):
        row = slice(i, i + 1)
        singly.append(sample(beside(base, adapter.select(i)), *conds(row), row))
    return together, torch.cat(singly)


def batches(base: ModelPatcher, adapter: Adapter) -> dict[str, float]:
    """Batches equal single runs, whole and when memory makes ComfyUI split the conditions."""
    measured = {}
    together, singly = rows_of(base, adapter, area=False)
    measured["rows"] = gap(together, singly)
    other = sample(beside(base, adapter.select([1, 2, 0])), [cond(2)], [cond(3)])
    measured["rows_differ"] = gap(together, other)
    measured["area_rows"] = gap(*rows_of(base, adapter, area=True))
    base.model.memory_required = lambda *_, **__: 1e20
    try:
        split = sample(beside(base, adapter), [cond(2)], [cond(3)])
    finally:
        del base.model.memory_required
    measured["split"] = gap(split, together)
    return measured


def branches(base: ModelPatcher, one: Adapter, two: Adapter) -> dict[str, object]:
    """One branch after the other is both; a second adapter serves the negative one."""
    positive, negative = Where("positive"), Where("negative")
    conds = ([cond(2)], [cond(3)])
    both = sample(beside(base, one), *conds)
    untouched = sample(base, *conds)
    halves = sample(beside(beside(base, one, 1.0, positive), one, 1.0, negative), *conds)
    pair = sample(beside(base, one, negative=two), *conds)
    stacked = sample(beside(beside(base, one, 1.0, positive), two, 1.0, negative), *conds)
    only = sample(beside(base, one, 1.0, negative), *conds)
    unguided = sample(base, *conds, cfg=1.0)
    return {
        "halves": gap(halves, both),
        "pair": gap(pair, stacked),
        "pair_differs": gap(pair, both),
        "negative_differs": min(gap(only, both), gap(only, untouched)),
        "negative_without_guidance": gap(sample(beside(base, one, 1.0, negative), *conds, cfg=1.0), unguided),
    }


def in_tiles(patcher: ModelPatcher, together: bool) -> ModelPatcher:
    """The patcher with its images cut in two, as tiling packs do: one call for each tile, or one for both."""
    patcher = patcher.clone()

    def cut(model, call: dict) -> Tensor:
        x, t, c = call["input"], call["timestep"], call["c"]
        tiles = x.chunk(2, dim=-1)
        if not together:
            return torch.cat([model(tile, t, **c) for tile in tiles], dim=-1)
        stacked = {
            name: torch.cat([value, value]) if isinstance(value, Tensor) else value
            for name, value in c.items()
        }
        return torch.cat(model(torch.cat(tiles), torch.cat([t, t]), **stacked).chunk(2), dim=-1)

    patcher.set_model_unet_function_wrapper(cut)
    return patcher


def tiles(base: ModelPatcher, adapter: Adapter) -> dict[str, float]:
    """Tiles that a pack stacks in one call get the LoRAs of their images and branches, also of one image."""
    measured = {}
    ways = {
        "tiles of a batch": (adapter, Where(), None),
        "tiles of a branch": (adapter.select(0), Where("positive"), None),
        "tiles of one image": (adapter.select(0), Where("positive"), slice(0, 1)),
    }
    for way, (given, where, rows) in ways.items():
        patcher = beside(base, given, 1.0, where)
        stacked, singly = (
            sample(in_tiles(patcher, together), [cond(2, rows)], [cond(3, rows)], rows)
            for together in (True, False)
        )
        measured[way] = gap(stacked, singly)
    return measured


def schedule(base: ModelPatcher, one: Adapter) -> dict[str, object]:
    """In place in its part of sampling only, and two parts make the whole."""
    seen: list[tuple[float, int]] = []

    def look(executor, *args, **kwargs):
        options = next(a for a in (*args, *kwargs.values()) if isinstance(a, dict) and "sigmas" in a)
        seen.append((float(options["sigmas"][0]), len(shadowed(executor.class_obj))))
        return executor(*args, **kwargs)

    def run(patcher: ModelPatcher) -> Tensor:
        patcher.add_wrapper_with_key("diffusion_model", "test", look)
        return sample(patcher, [cond(2)], [cond(3)], cfg=1.0, steps=4)

    first, last = Where(start=0.0, end=0.5), Where(start=0.5, end=1.0)
    part = run(beside(base, one, 1.0, first))
    steps, seen[:] = [count > 0 for _, count in seen], []
    rest = run(beside(base, one, 1.0, last))
    others = [count > 0 for _, count in seen]
    whole = sample(beside(base, one), [cond(2)], [cond(3)], cfg=1.0, steps=4)
    tiled = sample(
        beside(beside(base, one, 1.0, first), one, 1.0, last), [cond(2)], [cond(3)], cfg=1.0, steps=4
    )
    return {
        "steps": steps,
        "other_steps": others,
        "tiled": gap(tiled, whole),
        "parts_differ": min(gap(part, whole), gap(rest, whole), gap(part, rest)),
        "never": apply_adapter(base, one, 1.0, Where(start=0.6, end=0.4)).model is base,
    }


def merging(base: ModelPatcher, adapter: Adapter) -> dict[str, object]:
    """Merged is the same picture; what cannot be merged is a sentence; huge ranks are merged."""
    one = adapter.select(0)
    conds = ([cond(2)], [cond(3)])
    merge = Where(mode="merge")
    merged, beside_it = sample(beside(base, one, 0.5, merge), *conds), sample(beside(base, one, 0.5), *conds)
    padding = 300
    large = Adapter(
        {
            name: (torch.nn.functional.pad(A, (0, 0, 0, padding)), torch.nn.functional.pad(B, (0, padding)))
            for name, (A, B) in one.items()
        },
        one.scale,
    )
    huge = apply_adapter(base, large, 0.5)

    def refusal(adapter: Adapter, **where: object) -> str:
        try:
            apply_adapter(base, adapter, 1.0, Where(**where))
        except HywuError as error:
            return str(error)
        return ""

    return {
        "merged": gap(merged, beside_it),
        "merge_report": apply_adapter(base, one, 0.5, merge).report,
        "huge": gap(sample(huge.model, *conds), beside_it),
        "huge_report": huge.report,
        "huge_beside": gap(sample(beside(base, large, 0.5, Where(mode="side path")), *conds), beside_it),
        "report": apply_adapter(base, adapter, 1.0, Where("positive", 0.25)).report,
        "refused": [
            refusal(adapter, mode="merge"),
            refusal(one, branch="positive", mode="merge"),
            refusal(one, end=0.5, mode="merge"),
            refusal(one, end=1.5),
        ],
    }


def cancelled(base: ModelPatcher, one: Adapter) -> dict[str, object]:
    """What the side path remembers in mid-sampling, and after a cancel between two steps."""
    patcher = beside(base, one)
    (side,) = (each.model for each in patcher.get_additional_models())

    def remembered() -> bool:
        return any(pack._views is not None for pack in side.packs)

    seen: list[bool] = []

    def cancel(*_: object) -> None:
        seen.append(remembered())
        raise InterruptProcessingException

    start = noise()
    settings = (4, 1.0, "euler", "simple", [cond(2)], [cond(3)], torch.zeros_like(start))
    try:
        comfy.sample.sample(patcher, start, *settings, callback=cancel, disable_pbar=True, seed=1)
    except InterruptProcessingException:
        seen.append(remembered())
    return {"remembered": seen}


def idle(base: ModelPatcher, one: Adapter, two: Adapter) -> dict[str, object]:
    """Reports where a connected LoRA has nothing to do."""
    foreign = Adapter({"model.layers.0.mlp": one[next(iter(one))]})
    reports = {
        where: apply_adapter(base, one, 1.0, Where(where), two).report for where in ("positive", "negative")
    }
    nothing = apply_adapter(base, one, 0.0)
    try:
        apply_adapter(base, foreign, 0.0)
    except HywuError as error:
        reports["foreign"] = str(error)
    return {"idle": reports, "zero_report": nothing.report, "zero_is_base": nothing.model is base}


def main() -> dict[str, object]:
    """Everything the test asks about."""
    base, adapter = backbone(), adapters()
    one, two = adapter.select(0), adapter.select(1)
    before = sample(base, [cond(2)], [cond(3)])
    measured = batches(base, adapter) | branches(base, one, two) | schedule(base, one)
    measured |= tiles(base, adapter)
    measured |= merging(base, adapter) | cancelled(base, one) | idle(base, one, two)
    measured["after"] = gap(sample(base, [cond(2)], [cond(3)]), before)
    measured["shadowed"] = shadowed(flux.backbone().model) + shadowed(base.model)
    return measured


print(json.dumps(main()))
