"""Adapters on ComfyUI's models: a side path that is in place only while the model itself runs.

A wrapper around `apply_model` shadows the forward of every adapted module, runs the model, and restores the
forwards, also after an exception. Between two steps, after a cancel and in the next prompt nothing of it is
left, and other patches, whether put on before or after, find the modules as they left them. (A ModelPatcher
injection would stay for as long as the model is loaded, and stock's bypass LoRA takes its own off in an order
that puts ours back.)

Base weights are never touched, so an adapter comes and goes without re-patching, on quantised and offloaded
weights too. The adapter's tensors are an additional model of the patcher: ComfyUI loads, counts and offloads
them.

Only ComfyUI can import this module.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import HywuError
from ..lora import Adapter
from ..lora.keys import Factors, to_file
from .comfy_merge import DEAREST_SIDE_PATH, merged, relative_cost
from .comfy_paths import Schedule, Served, SidePaths, put_around
from .comfy_places import Place, find_module, find_places
from .packed import PackedAdapter, Part

__all__ = ["Applied", "Branch", "Mode", "Where", "apply_adapter", "find_places", "lora_model"]

logger = logging.getLogger("hywu")

Branch = Literal["both", "positive", "negative"]
Mode = Literal["auto", "side path", "merge"]

_BRANCHES: dict[str, frozenset[bool]] = {  # True is the positive branch
    "both": frozenset((True, False)),
    "positive": frozenset((True,)),
    "negative": frozenset((False,)),
}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Where:
    """When and where a LoRA acts, and how.

    start, end: of sampling, from 0 to 1.  branch: of classifier-free guidance.
    mode: "side path" runs beside the model; "merge" patches the weights as stock loaders do, which takes one
        LoRA, both branches and all of sampling; "auto" is the side path, unless its multiplications are more
        than a quarter of the adapted modules' own (ranks in the hundreds) and merging is possible, or it does
        not reach a module (`Place.passed_by`).

    Raises `HywuError` for values out of range.
    """

    branch: Branch = "both"
    start: float = 0.0
    end: float = 1.0
    mode: Mode = "auto"

    def __post_init__(self) -> None:
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise HywuError(
                f"The LoRA runs from {self.start} to {self.end} of sampling; both must be 0 to 1."
            )
        for value, kind in ((self.branch, Branch), (self.mode, Mode)):
            if value not in get_args(kind):
                raise HywuError(f"{value!r} is none of {', '.join(get_args(kind))}.")

    @property
    def schedule(self) -> Schedule:
        """The part of sampling."""
        return Schedule(self.start, self.end)


_EVERYWHERE = Where()


class Applied(NamedTuple):
    """A patcher whose model runs with an adapter, and what to tell the user about it."""

    model: ModelPatcher
    report: list[str]


@dataclass
class _Serving:
    """One adapter, the branches it serves and its places."""

    adapter: Adapter
    branches: frozenset[bool]
    places: dict[str, Place] = field(default_factory=dict)


def apply_adapter(
    patcher: ModelPatcher,
    adapter: Adapter,
    strength: float = 1.0,
    where: Where = _EVERYWHERE,
    negative: Adapter | None = None,
) -> Applied:
    """A clone of the patcher whose model runs with the adapter; the given patcher stays as it is.

    negative: another adapter for the negative branch; `adapter` then serves the positive one.

    Raises HywuError when the model has none of an adapter's targets, when it has one of other dims, for
    values that are not finite, and where the mode is not possible.
    """
    if not math.isfinite(strength):
        raise HywuError(f"The strength is {strength}; it must be a finite number.")
    branches = _BRANCHES[where.branch]
    servings, report = [_Serving(adapter, branches)], []
    if negative is not None:
        servings = [_Serving(adapter, branches & {True}), _Serving(negative, branches & {False})]
        if idle := _BRANCHES["both"] - branches:
            report.append(f"The LoRA for {_named(idle)} is not used: the branch is {where.branch}.")
        servings = [serving for serving in servings if serving.branches]
    for serving in servings:
        serving.places = find_places(patcher.model, list(serving.adapter))
        _check(patcher.model, serving)
        report.append(_found(patcher.model, serving))
    if not strength:
        return Applied(patcher, [*report, "Strength 0: the model is as it was."])
    if where.start >= where.end:
        return Applied(
            patcher, [*report, f"Never in place: from {where.start:g} to {where.end:g} of sampling."]
        )
    cannot = _cannot_merge(servings, where)
    if where.mode == "merge" and cannot:
        raise HywuError(f"Merging into the weights takes {cannot}; choose the mode 'side path'.")
    first = servings[0].adapter
    cost = relative_cost(first, servings[0].places.values())
    unreached = _unreached(servings)
    if unreached and (where.mode == "side path" or (where.mode == "auto" and cannot)):
        raise HywuError(
            f"{unreached[0].upper()}{unreached[1:]}; "
            + (f"and merging takes {cannot}." if cannot else "choose the mode 'merge', or auto, which does.")
        )
    rather_merged = unreached or (cost > DEAREST_SIDE_PATH and not cannot)
    if where.mode == "merge" or (where.mode == "auto" and rather_merged):
        first.check()
        reason = unreached or f"a side path of rank {first.rank} costs {cost:.0%} of theirs"
        report.append(f"Merged into the weights{f' ({reason})' if where.mode == 'auto' else ''}.")
        return Applied(merged(patcher, first, servings[0].places, strength), report)
    report.append(_described(servings, where))
    return Applied(_beside(patcher, servings, strength, where.schedule), report)


def lora_model(adapter: Adapter, index: int = 0) -> dict[str, Tensor]:
    """One adapter of the batch as core's LORA_MODEL: the tensors of a stock LoRA file, scale in B."""
    one = adapter.select(index)
    # Copies: generated factors are views into the tokens of a whole band, which core could not save.
    factors = {
        name: Factors(A[0].clone(memory_format=torch.contiguous_format), (B[0] * one.scale).contiguous())
        for name, (A, B) in one.items()
    }
    return to_file(factors, "auto")


def _beside(
    patcher: ModelPatcher, servings: list[_Serving], strength: float, schedule: Schedule
) -> ModelPatcher:
    """A clone with the adapters' side paths around its model calls."""
    dtype = _compute_dtype(patcher.model, servings[0].adapter.dtype)
    paths = _distinct(patcher.model, servings)
    served = [Served(_packed(one, paths, strength, dtype), one.branches) for one in servings]
    convolutions = {paths[p.module]: p.convolution for one in servings for p in one.places.values()}
    # Where the model waits too; ComfyUI loads both, and counts what it loads.
    side = SidePaths(served, convolutions).to(patcher.offload_device)
    clone = patcher.clone()
    put_around(clone, side, schedule)
    return clone


def _distinct(model: BaseModel, servings: list[_Serving]) -> dict[str, str]:
    """One path for every module, however many paths lead to it: a shared module is adapted once."""
    first: dict[int, str] = {}
    paths = dict.fromkeys(place.module for one in servings for place in one.places.values())
    return {path: first.setdefault(id(find_module(model, path)), path) for path in paths}


def _packed(
    serving: _Serving, paths: Mapping[str, str], strength: float, dtype: torch.dtype
) -> PackedAdapter:
    """The adapter's targets gathered by the module they live in; paths: `_distinct`."""
    adapter = serving.adapter
    parts: dict[str, list[Part]] = {}
    for name, place in serving.places.items():
        A, B = adapter[name]
        if place.permute is not None:
            B = torch.stack([place.permute(matrix) for matrix in B])
        part = Part(A, B, adapter.scale * strength, place.start, whole=not place.fused)
        parts.setdefault(paths[place.module], []).append(part)
    packed = PackedAdapter(parts, dtype)
    if not packed.is_finite():
        adapter.check()  # names the tensor, if the adapter itself is at fault
        raise HywuError(
            f"At strength {strength:g} the LoRA has values beyond what the model's {dtype} can hold; "
            "lower the strength."
        )
    return packed


def _check(model: BaseModel, serving: _Serving) -> None:
    adapter, places, name_of_model = serving.adapter, serving.places, type(model).__name__
    if not places:
        raise _mismatch(adapter, f"the {name_of_model} model has no target such as '{next(iter(adapter))}'")
    for name, place in places.items():
        A, B = adapter[name]
        if A.dim() != 3:
            raise HywuError(
                f"Target '{name}' is a group of {A.shape[1]} experts; ComfyUI's models have none."
            )
        if (A.shape[-1], B.shape[-2]) != (place.d_in, place.length):
            sizes = f"{A.shape[-1]} -> {B.shape[-2]} in it, but {place.d_in} -> {place.length}"
            raise _mismatch(adapter, f"'{name}' is {sizes} in the {name_of_model} model")


def _found(model: BaseModel, serving: _Serving) -> str:
    """A line about matched and unmatched targets, also for the log."""
    adapter, places, name = serving.adapter, serving.places, type(model).__name__
    if missing := [target for target in adapter if target not in places]:
        line = (
            f"{len(places)} of the LoRA's {len(adapter)} targets found in the {name} model; {len(missing)} "
            f"are not in it and have no effect, such as {missing[0]}."
        )
        logger.warning(line)
    else:
        line = f"All {len(adapter)} targets of the LoRA found in the {name} model."
        logger.info(line)
    return line


def _mismatch(adapter: Adapter, detail: str) -> HywuError:
    made_for = adapter.provenance.get("base", "unknown")
    return HywuError(
        f"This LoRA was generated for the backbone '{made_for}', not for the connected model: {detail}. "
        "Connect the model that the generator was made for."
    )


def _cannot_merge(servings: list[_Serving], where: Where) -> str:
    """What a merge would need and does not have; empty if it is possible."""
    if len(servings) > 1 or servings[0].adapter.batch > 1:
        return f"a single LoRA, and here are {sum(one.adapter.batch for one in servings)}"
    if where.branch != "both":
        return f"both branches, and this LoRA is for the {where.branch} one"
    if not where.schedule.always:
        return f"all of sampling, and this LoRA is for {where.start:g} to {where.end:g}"
    return ""


def _unreached(servings: list[_Serving]) -> str:
    """A clause about modules that a side path would miss; empty if there are none."""
    missed = {
        place.module: place.passed_by for one in servings for place in one.places.values() if place.passed_by
    }
    if not missed:
        return ""
    module, reason = next(iter(missed.items()))
    return f"a side path does not reach {len(missed)} of the {reason}, such as {module}"


def _described(servings: list[_Serving], where: Where) -> str:
    """A line about what runs beside the model."""
    count = "; ".join(
        f"{one.adapter.batch} LoRA{'s, one for each image,' if one.adapter.batch > 1 else ''} "
        f"of rank {one.adapter.rank} on {_named(one.branches)}"
        for one in servings
    )
    when = "" if where.schedule.always else f", from {where.start:.0%} to {where.end:.0%} of sampling"
    return f"Side path: {count}{when}."


def _named(branches: frozenset[bool]) -> str:
    both = {frozenset((True, False)): "both branches", frozenset((True,)): "the positive branch"}
    return both.get(branches, "the negative branch")


def _compute_dtype(model: BaseModel, otherwise: torch.dtype) -> torch.dtype:
    """The dtype the model's linears answer in, so that nothing is cast while sampling."""
    dtype = model.manual_cast_dtype or model.get_dtype()
    return dtype if dtype in _FLOATS else otherwise
