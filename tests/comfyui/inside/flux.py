# ruff: noqa: E402 (ComfyUI must be opened before it is imported)
"""ComfyUI's own FLUX with random weights, sampled in this process: what the scripts beside this one share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from open_comfy import open_comfy

WORK = open_comfy()

import comfy.model_management
import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from pack.hywu_core.apply.comfy import Where, apply_adapter
from pack.hywu_core.apply.comfy_places import find_places
from pack.hywu_core.errors import HywuError
from pack.hywu_core.lora import Adapter, load_adapter
from torch import Tensor, nn

IMAGES = 3
SIZE = (8, 12)
Cond = list


def backbone(**model_options: object) -> ModelPatcher:
    """The model of the work folder, as "Load Diffusion Model" opens it."""
    return comfy.sd.load_diffusion_model(str(WORK / "backbone.safetensors"), model_options)


def adapters() -> Adapter:
    """IMAGES random LoRAs."""
    return Adapter.stack([load_adapter(WORK / f"adapter_{i}.safetensors") for i in range(IMAGES)])


def beside(patcher: ModelPatcher, adapter: Adapter, *args: object, **settings: object) -> ModelPatcher:
    """The patcher with an adapter, without the report."""
    return apply_adapter(patcher, adapter, *args, **settings).model


def refusals(patcher: ModelPatcher, adapter: Adapter) -> dict[str, str]:
    """What is said of an adapter that has to be merged where it cannot be, by way of asking."""
    refused = {}
    for kind, where in {"side path": Where(mode="side path"), "branch": Where(branch="positive")}.items():
        try:
            apply_adapter(patcher, adapter, 1.0, where)
        except HywuError as error:
            refused[kind] = str(error)
    return refused


def cond(seed: int, rows: slice | None = None, **more: object) -> Cond:
    """A conditioning for IMAGES images, or for some of them."""
    random = torch.Generator().manual_seed(seed)
    rows = rows or slice(None)
    context = torch.randn(IMAGES, 16, 512, generator=random)[rows]
    pooled = torch.randn(IMAGES, 512, generator=random)[rows]
    return [context, {"pooled_output": pooled, **more}]


def noise(rows: slice | None = None) -> Tensor:
    """The noise of IMAGES images, or of some of them."""
    return torch.randn(IMAGES, 16, *SIZE, generator=torch.Generator().manual_seed(9))[rows or slice(None)]


def sample(
    patcher: ModelPatcher,
    positive: Sequence[Cond],
    negative: Sequence[Cond],
    rows: slice | None = None,
    cfg: float = 3.0,
    steps: int = 2,
) -> Tensor:
    """As KSampler samples, with Euler's method."""
    start = noise(rows)
    settings = (steps, cfg, "euler", "simple", positive, negative, torch.zeros_like(start))
    with torch.inference_mode():
        return comfy.sample.sample(patcher, start, *settings, disable_pbar=True, seed=1).clone()


def predict(patcher: ModelPatcher, rows: int = 1) -> Tensor:
    """One model call on some rows, as sampling makes it."""
    comfy.model_management.load_models_gpu([patcher, *patcher.get_nested_additional_models()])
    context, rest = cond(2)
    return patcher.model.apply_model(
        noise()[:rows],
        torch.full((rows,), 0.7),
        c_crossattn=context[:rows],
        y=rest["pooled_output"][:rows],
        transformer_options={"wrappers": patcher.wrappers, "cond_or_uncond": [0]},
    )


def gap(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return (a.float() - b.float()).abs().max().item()


def shadowed(model: nn.Module) -> list[str]:
    """The modules whose forward is shadowed in the instance."""
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@contextmanager
def plain_sum(patcher: ModelPatcher, adapter: Adapter) -> Iterator[None]:
    """The formula itself, as torch hooks: each linear's output plus x A^T B^T of every target in it."""
    handles = []
    for name, place in find_places(patcher.model, list(adapter)).items():
        A, B = adapter[name]
        B = B[0] if place.permute is None else place.permute(B[0])

        def add(module, args, y, A=A[0], B=B * adapter.scale, place=place):
            x = args[0].to(y.dtype)
            total = y.clone()
            total[..., place.start : place.start + place.length] += x @ A.to(y.dtype).T @ B.to(y.dtype).T
            return total

        handles.append(patcher.model.get_submodule(place.module).register_forward_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
