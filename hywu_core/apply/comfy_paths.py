"""The side path in a ComfyUI model: a wrapper around each model call. Only ComfyUI can import this module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP
from torch import Tensor, nn

from .comfy_places import find_module
from .fused import Convolution, Update
from .packed import PackedAdapter
from .rows import plan_spans
from .slots import Entry, side_paths

_KEY_PREFIX = "hywu."  # of the keys of our wrappers and additional models


@dataclass(frozen=True)
class Served:
    """What one packed adapter is for: branches as in `rows.plan_spans`."""

    packed: PackedAdapter
    branches: frozenset[bool]


@dataclass(frozen=True)
class Schedule:
    """The part of sampling during which the side path is in place, in fractions from 0 to 1."""

    start: float = 0.0
    end: float = 1.0

    @property
    def always(self) -> bool:
        """Whether it is all of sampling."""
        return self.start <= 0 and self.end >= 1

    def includes(self, model: BaseModel, sigmas: Tensor | None) -> bool:
        """Whether a call at these noise levels is in it: from the start on, and before the end.

        Half open, so that one node from 0 to 0.5 and another from 0.5 to 1 share every step out.
        """
        if self.always or sigmas is None:
            return True
        sigma = float(sigmas.flatten()[0])
        sampling = model.model_sampling
        began = self.start <= 0 or sigma <= sampling.percent_to_sigma(self.start)
        return began and (self.end >= 1 or sigma > sampling.percent_to_sigma(self.end))


class SidePaths(nn.Module):
    """The tensors of up to two adapters for the modules of one kind of ComfyUI model."""

    def __init__(self, served: Sequence[Served], convolutions: Mapping[str, Convolution | None]) -> None:
        super().__init__()
        self.packs = nn.ModuleList(one.packed for one in served)
        self.branches = tuple(one.branches for one in served)
        self.convolutions = dict(convolutions)

    def copy(self) -> SidePaths:
        """The same side paths with tensors of their own, in main memory."""
        served = [Served(pack.copy(), where) for pack, where in zip(self.packs, self.branches, strict=True)]
        return SidePaths(served, self.convolutions)

    def entries(
        self, model: BaseModel, device: torch.device, chunks: Sequence[int], rows: int, images: int | None
    ) -> Iterator[Entry]:
        """The updates of every module of the model in a call (see `plan_spans`); none if none is served."""
        plans = []
        for pack, branches in zip(self.packs, self.branches, strict=True):
            spans = plan_spans(pack.batch, branches, chunks, rows, images)
            if spans is None or spans:
                plans.append((pack.layers(device), spans))
        for name, convolution in self.convolutions.items() if plans else ():
            updates = tuple(Update(*layers[name], spans) for layers, spans in plans if name in layers)
            if updates:
                yield find_module(model, name), updates, convolution

    def forget(self) -> None:
        """Let go of what is remembered between two steps."""
        for pack in self.packs:
            pack.forget()


class AroundApplyModel:
    """ComfyUI's `apply_model` wrapper: runs the model with the side paths in place.

    key: of the additional model that holds the tensors. Clones for other GPUs have one of their own under
        the same key, so it is looked for in the patcher that is running. One without it is another model, to
        which core's Dual Model CFG Guider hands the first one's wrappers: it runs untouched.
    """

    def __init__(self, key: str, side: SidePaths, schedule: Schedule) -> None:
        self.key, self.side, self.schedule = key, side, schedule

    def __call__(
        self,
        executor: WrapperExecutor,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run the model on x (M, ...), rows as in `rows`."""
        model = executor.class_obj
        options = transformer_options if transformer_options is not None else {}
        side = self._side_of(model)
        if side is None or not self.schedule.includes(model, options.get("sigmas")):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        chunks = options.get("cond_or_uncond") or (0,)
        options = _without_ours(options)
        try:
            images = _images_in(len(x), t, options.get("sigmas"))
            entries = side.entries(model, x.device, chunks, len(x), images)
            with side_paths(entries, len(x)):
                return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        except BaseException:
            side.forget()
            raise

    def _side_of(self, model: BaseModel) -> SidePaths | None:
        patcher = model.current_patcher
        if patcher is None:  # a call outside of sampling
            return self.side
        own = patcher.get_additional_models_with_key(self.key)
        return own[0].model if own else None


def _images_in(rows: int, t: Tensor, sigmas: Tensor | None) -> int | None:
    """The images of each chunk in core's call, whatever a pack has made of it; None if it cannot be told.

    sigmas (N,): one for each image, left as it was by packs that stack tiles.  t: of this call, repeated with
    its rows; a sampler that gives all rows one noise level does not tell.
    """
    return len(sigmas) if sigmas is not None and sigmas.dim() and t.dim() and len(t) == rows else None


def _without_ours(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the model may see them: compiled ones would be compiled again for every new wrapper."""
    wrappers = options.get("wrappers", {})
    around = wrappers.get(WrappersMP.APPLY_MODEL, {})
    others = {key: them for key, them in around.items() if not str(key).startswith(_KEY_PREFIX)}
    return {**options, "wrappers": {**wrappers, WrappersMP.APPLY_MODEL: others}}


def put_around(patcher: ModelPatcher, side: SidePaths, schedule: Schedule) -> None:
    """Have a patcher run its model with the side paths, under a key of their own: they stack.

    They forget with the model's own cleanup: theirs would not come after a cancel between two steps.
    """
    key = f"{_KEY_PREFIX}{uuid4().hex}"
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, AroundApplyModel(key, side, schedule))
    patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, key, partial(_forget, key))
    patcher.set_additional_models(key, [_patcher_of(side, patcher.load_device, patcher.offload_device)])


def _patcher_of(
    side: SidePaths, load_device: torch.device, offload_device: torch.device, disable_dynamic: bool = False
) -> ModelPatcher:
    """The side paths under ComfyUI's memory management.

    disable_dynamic: what ComfyUI passes to the factories of its own models; ours has no other kind.
    """
    patcher = ModelPatcher(side, load_device, offload_device)
    # ComfyUI's clones for other GPUs are made by the factory a model came from.
    patcher.cached_patcher_init = (_copied_patcher, (side, load_device, offload_device))
    return patcher


def _copied_patcher(side: SidePaths, *devices: torch.device, **options: Any) -> ModelPatcher:
    return _patcher_of(side.copy(), *devices, **options)


def _forget(key: str, patcher: ModelPatcher) -> None:
    for own in patcher.get_additional_models_with_key(key):
        own.model.forget()
