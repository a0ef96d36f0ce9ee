"""Adapters on ComfyUI's models: a side path that is in place only while the model itself runs.

A wrapper around `apply_model` shadows the forward of every adapted linear, runs the model, and restores the
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import comfy.lora
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor, nn

from ..errors import HywuError
from ..lora import Adapter
from ..lora.keys import Factors, to_file
from .fused import FusedPath, Part

logger = logging.getLogger("hywu")

# Under which ComfyUI's tables know a backbone's own module names.
_PREFIXES = ("transformer.", "diffusion_model.", "")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Place:
    """Where a target lives in a ComfyUI model.

    module: path of the linear from the BaseModel.  start, length: the output rows that are the target's.
    fused: whether the linear has other rows too.
    permute: how ComfyUI reordered the target's rows when it converted the weights, if it did.
    """

    module: str
    start: int
    length: int
    d_in: int
    fused: bool
    permute: Callable[[Tensor], Tensor] | None


def find_places(model: BaseModel, names: Sequence[str]) -> dict[str, Place]:
    """The places of those target names that the model has, by the table stock LoRA loaders use."""
    table = comfy.lora.model_lora_keys_unet(model, {})
    places = {}
    for name in names:
        entry = next((table[prefix + name] for prefix in _PREFIXES if prefix + name in table), None)
        if entry is None:
            continue
        key, rows, permute = (entry, None, None) if isinstance(entry, str) else (*entry, None)[:3]
        module_name = key.removesuffix(".weight")
        module = model.get_submodule(module_name)
        if not hasattr(module, "out_features"):
            continue
        _axis, start, length = rows or (0, 0, module.out_features)  # the table slices along rows only
        fused = length < module.out_features
        places[name] = Place(module_name, start, length, module.in_features, fused, permute)
    return places


class SidePaths(nn.Module):
    """The adapter's tensors, laid out for the linears of one kind of ComfyUI model."""

    def __init__(self, paths: Mapping[str, FusedPath]) -> None:
        super().__init__()
        self.names = tuple(paths)
        self.paths = nn.ModuleList(paths.values())

    @property
    def batch(self) -> int:
        """The number of adapters."""
        return self.paths[0].batch

    def around_apply_model(
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
        """ComfyUI's `apply_model` wrapper: run the model on x (k * N, ...) with the side paths in place."""
        options = transformer_options if transformer_options is not None else {}
        images = len(x) // len(options.get("cond_or_uncond", (0,)))
        if self.batch not in (1, images):
            raise HywuError(
                f"Apply Generated LoRA holds {self.batch} LoRAs, but the latent is a batch of {images}; "
                "generate one LoRA for each image, or a single one for all."
            )
        with self._in_place(executor.class_obj):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    @contextmanager
    def _in_place(self, model: BaseModel) -> Iterator[None]:
        shadowed: list[tuple[nn.Module, Any]] = []
        try:
            for name, path in zip(self.names, self.paths, strict=True):
                module = model.get_submodule(name)
                shadowed.append((module, vars(module).get("forward")))
                module.forward = _Followed(module.forward, path)
            yield
        finally:
            for module, forward in reversed(shadowed):
                if forward is not None:
                    module.forward = forward
                else:
                    vars(module).pop("forward", None)


class _Followed:
    """A linear's forward, followed by the side path."""

    def __init__(self, forward: Callable[..., Tensor], path: FusedPath) -> None:
        self.forward = forward
        self.path = path

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.path(self.forward(x, *args, **kwargs), x)


def apply_adapter(patcher: ModelPatcher, adapter: Adapter, strength: float = 1.0) -> ModelPatcher:
    """A clone of the patcher whose model runs with the adapter; the given patcher stays as it is.

    Raises HywuError when the model has none of the adapter's targets, when it has one of other dims, and for
    values that are not finite.
    """
    if not math.isfinite(strength):
        raise HywuError(f"The strength is {strength}; it must be a finite number.")
    adapter.check()
    model = patcher.model
    places = find_places(model, list(adapter))
    _check(model, adapter, places)
    side = SidePaths(_paths(adapter, places, strength, _compute_dtype(model, adapter.dtype)))
    clone = patcher.clone()
    key = f"hywu.{uuid4().hex}"  # one of its own each time, so that adapters stack
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, side.around_apply_model)
    clone.set_additional_models(key, [ModelPatcher(side, patcher.load_device, patcher.offload_device)])
    return clone


def lora_model(adapter: Adapter, index: int = 0) -> dict[str, Tensor]:
    """One adapter of the batch as core's LORA_MODEL: the tensors of a stock LoRA file, scale in B."""
    # Copies: generated factors are views into the tokens of a whole band, which core could not save.
    one = adapter.select(index).clone()
    factors = {
        name: Factors(A[0].contiguous(), (B[0] * one.scale).contiguous()) for name, (A, B) in one.items()
    }
    return to_file(factors, "auto")


def _check(model: BaseModel, adapter: Adapter, places: Mapping[str, Place]) -> None:
    name_of_model = type(model).__name__
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
    if missing := [name for name in adapter if name not in places]:
        logger.warning(
            "%d of the LoRA's %d targets are not in this %s model, such as %s; they have no effect.",
            len(missing),
            len(adapter),
            name_of_model,
            missing[0],
        )
    else:
        logger.info("All %d targets of the LoRA found in the %s model.", len(adapter), name_of_model)


def _mismatch(adapter: Adapter, detail: str) -> HywuError:
    made_for = adapter.provenance.get("base", "unknown")
    return HywuError(
        f"This LoRA was generated for the backbone '{made_for}', not for the connected model: {detail}. "
        "Connect the model that the generator was made for."
    )


def _paths(
    adapter: Adapter, places: Mapping[str, Place], strength: float, dtype: torch.dtype
) -> dict[str, FusedPath]:
    """The adapter's targets gathered by the linear they live in."""
    parts: dict[str, list[Part]] = {}
    for name, place in places.items():
        A, B = adapter[name]
        B = B.float() * (adapter.scale * strength)
        if place.permute is not None:
            B = torch.stack([place.permute(matrix) for matrix in B])
        parts.setdefault(place.module, []).append(Part(A.to(dtype), B.to(dtype), place.start))
    return {module: FusedPath(members) for module, members in parts.items()}


def _compute_dtype(model: BaseModel, otherwise: torch.dtype) -> torch.dtype:
    """The dtype the model's linears answer in, so that nothing is cast while sampling."""
    dtype = model.manual_cast_dtype or model.get_dtype()
    return dtype if dtype in _FLOATS else otherwise
