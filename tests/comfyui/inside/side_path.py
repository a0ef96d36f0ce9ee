# ruff: noqa: E402 (ComfyUI must be opened before it is imported)
"""How the side path behaves on ComfyUI's own FLUX: beside stock LoRAs, in batches, stacked, afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from open_comfy import open_comfy

WORK = open_comfy()

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from pack.hywu_core.apply.comfy import apply_adapter as apply_and_report
from pack.hywu_core.apply.comfy import find_places
from pack.hywu_core.errors import HywuError
from pack.hywu_core.lora import Adapter, load_adapter, save_adapter
from torch import Tensor

IMAGES = 3


def inputs(chunks: int) -> dict[str, Tensor | list]:
    """One call of the model on `chunks` stacked batches of the same IMAGES images, with a reference each."""
    random = torch.Generator().manual_seed(5)
    x = torch.randn(IMAGES, 16, 8, 12, generator=random).repeat(chunks, 1, 1, 1)
    reference = torch.randn(IMAGES, 16, 8, 12, generator=random).repeat(chunks, 1, 1, 1)
    context = torch.randn(chunks * IMAGES, 32, 512, generator=random)
    pooled = torch.randn(chunks * IMAGES, 512, generator=random)
    return {
        "x": x,
        "reference": reference,
        "context": context,
        "pooled": pooled,
        "chunks": list(range(chunks)),
    }


def predict(patcher: ModelPatcher, given: dict, rows: slice | None = None) -> Tensor:
    """One model call as sampling makes it: load the patchers, merge their wrappers, `apply_model`."""
    comfy.model_management.load_models_gpu([patcher, *patcher.get_nested_additional_models()])
    chunks = given["chunks"] if rows is None else [0]
    rows = rows or slice(None)
    x = given["x"][rows]
    options = {"wrappers": patcher.wrappers, "cond_or_uncond": chunks}
    return patcher.model.apply_model(
        x,
        torch.full((len(x),), 0.7),
        c_crossattn=given["context"][rows],
        y=given["pooled"][rows],
        ref_latents=[given["reference"][rows]],
        transformer_options=options,
    )


def apply_adapter(*arguments: object, **settings: object) -> ModelPatcher:
    """The patcher alone, without the report."""
    return apply_and_report(*arguments, **settings).model


def gap(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return (a - b).abs().max().item()


def sentence(action: Callable[[], object]) -> str:
    """The HywuError an action ends with; empty if it does not."""
    try:
        action()
    except HywuError as error:
        return str(error)
    return ""


def forwards(patcher: ModelPatcher) -> list[str]:
    """The modules whose forward is shadowed in the instance."""
    return [name for name, module in patcher.model.named_modules() if "forward" in vars(module)]


def stock(
    patcher: ModelPatcher, file: Path, strength: float, loader: str = "load_lora_for_models"
) -> ModelPatcher:
    """The patcher of stock's LoRA loader for models, or of its bypass sibling."""
    return getattr(comfy.sd, loader)(patcher, None, comfy.utils.load_torch_file(str(file)), strength, 0)[0]


def beside_bypass(base: ModelPatcher, one: Adapter, two: Adapter, given: dict) -> dict[str, float]:
    """The side path over and under stock's bypass LoRA, against stock's merged one."""
    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        return {}
    # Stock's bypass drops what is a slice of a fused linear or reordered; it is not given any.
    places = find_places(base.model, list(two)).items()
    whole = {name: two[name] for name, place in places if not (place.fused or place.permute)}
    file = save_adapter(Adapter(whole, two.scale), WORK / "whole.safetensors", key_format="diffusers")
    merged = predict(apply_adapter(stock(base, file, 1.0), one), given)
    bypass = "load_bypass_lora_for_models"
    return {
        "over_bypass": gap(predict(apply_adapter(stock(base, file, 1.0, bypass), one), given), merged),
        "under_bypass": gap(predict(stock(apply_adapter(base, one), file, 1.0, bypass), given), merged),
    }


def main() -> dict[str, object]:
    """Everything the test asks about."""
    base = comfy.sd.load_diffusion_model(str(WORK / "backbone.safetensors"))
    adapter = Adapter.stack([load_adapter(WORK / f"adapter_{i}.safetensors") for i in range(IMAGES)])
    one, two = adapter.select(0), adapter.select(1)
    alone, pair = inputs(1), inputs(2)
    untouched = predict(base, alone)
    measured: dict[str, object] = {"targets": len(one), "found": len(find_places(base.model, list(one)))}

    applied = predict(apply_adapter(base, one, 0.7), alone)
    measured["effect"] = gap(applied, untouched)
    measured["stock"] = gap(applied, predict(stock(base, WORK / "adapter_0.safetensors", 0.7), alone))
    baked = save_adapter(one, WORK / "baked.safetensors", strength=0.7, key_format="diffusers")
    measured["baked"] = gap(applied, predict(stock(base, baked, 1.0), alone))
    measured["after"] = gap(predict(base, alone), untouched)
    measured["shadowed"] = forwards(base)

    together = predict(apply_adapter(base, adapter), pair)
    rows = [slice(i, i + 1) for i in range(2 * IMAGES)]
    singly = [
        predict(apply_adapter(base, adapter.select(i % IMAGES)), pair, row) for i, row in enumerate(rows)
    ]
    measured["rows"] = gap(together, torch.cat(singly))
    measured["rows_differ"] = gap(together, predict(apply_adapter(base, adapter.select([1, 2, 0])), pair))
    measured["wrong_batch"] = sentence(lambda: predict(apply_adapter(base, adapter.select([0, 1])), pair))

    twice = predict(apply_adapter(apply_adapter(base, one), two, 0.5), alone)
    merged_file = WORK / "adapter_1.safetensors"
    merged = stock(stock(base, WORK / "adapter_0.safetensors", 1.0), merged_file, 0.5)
    measured["twice"] = gap(twice, predict(merged, alone))
    measured["over_stock"] = gap(predict(apply_adapter(stock(base, merged_file, 0.5), one), alone), twice)
    measured["under_stock"] = gap(predict(stock(apply_adapter(base, one), merged_file, 0.5), alone), twice)
    measured["zero"] = gap(predict(apply_adapter(base, one.map(torch.zeros_like)), alone), untouched)

    def broken(*_: object) -> None:
        raise InterruptedError

    interrupted = apply_adapter(base, one)
    interrupted.add_wrapper_with_key("diffusion_model", "test", broken)
    try:
        predict(interrupted, alone)
    except InterruptedError:
        measured["shadowed_after_exception"] = forwards(base)
    measured["after_all"] = gap(predict(base, alone), untouched)

    foreign = Adapter({"model.layers.0.mlp": one[next(iter(one))]}, provenance={"base": "another model"})
    wide = "transformer_blocks.0.attn.to_q"
    wider = Adapter(
        {wide: (torch.zeros(1, 4, 3072), torch.zeros(1, 3072, 4))}, provenance={"base": "FLUX.1-dev"}
    )
    measured["foreign"] = sentence(lambda: apply_adapter(base, foreign))
    measured["wider"] = sentence(lambda: apply_adapter(base, wider))
    return measured | beside_bypass(base, one, two, alone)


print(json.dumps(main()))
