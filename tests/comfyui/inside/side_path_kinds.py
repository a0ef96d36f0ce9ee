"""The side path on other weights and modules: 8-bit, convolutions, shared, clones for other GPUs."""

from __future__ import annotations

import json

from flux import adapters, backbone, beside, cond, gap, plain_sum, predict, refusals, sample, shadowed

# isort: split
import comfy.ldm.wan.model
import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from pack.hywu_core.apply.comfy import Where, apply_adapter, find_places
from pack.hywu_core.lora import Adapter

FP8 = torch.float8_e4m3fn
ALL = slice(None)


def against_the_formula(patcher: ModelPatcher, adapter: Adapter) -> dict[str, float]:
    """The side path, and the formula as hooks on the same modules; how far both are from the base."""
    untouched = predict(patcher)
    with plain_sum(patcher, adapter):
        expected = predict(patcher)
    applied = predict(beside(patcher, adapter))
    scale = (expected - untouched).float().abs().max().item()
    return {"gap": gap(applied, expected) / scale, "after": gap(predict(patcher), untouched)}


def quantised(adapter: Adapter) -> dict[str, dict[str, object]]:
    """Weights in 8 bits: as "Load Diffusion Model" casts them, and as files hold them with scales."""
    cast = backbone(dtype=FP8)
    fast = backbone(dtype=FP8, fp8_optimizations=True)
    plain = backbone()
    state = plain.model.diffusion_model.state_dict()
    linears = {n for n, m in plain.model.diffusion_model.named_modules() if isinstance(m, torch.nn.Linear)}
    scaled = {"scaled_fp8": torch.zeros(0, dtype=FP8)}
    for key, value in state.items():
        name = key.removesuffix(".weight")
        if name != key and name in linears:
            scale = value.abs().max().float() / 448
            scaled[key], scaled[f"{name}.scale_weight"] = (value.float() / scale).to(FP8), scale
        else:
            scaled[key] = value.clone()
    with_scales = comfy.sd.load_diffusion_model_state_dict(scaled)
    opened = {"cast": cast, "fast": fast, "scaled": with_scales}
    return {
        kind: against_the_formula(patcher, adapter)
        | {"dtype": str(first_linear(patcher).weight.dtype), "held_as": held_as(first_linear(patcher))}
        for kind, patcher in opened.items()
    }


def first_linear(patcher: ModelPatcher) -> torch.nn.Module:
    """Any linear of the model."""
    return patcher.model.diffusion_model.double_blocks[0].img_attn.qkv


def held_as(linear: torch.nn.Module) -> str:
    """The dtype of the numbers a weight is made of, which quantised tensors do not show."""
    weight = linear.weight
    return str(getattr(weight, "_qdata", weight).dtype)


def unet() -> ModelPatcher:
    """A Stable Diffusion UNet of 32 channels: it has convolutions."""
    config = comfy.supported_models.SD15(
        {
            **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32},
            **{"num_res_blocks": [1, 1], "channel_mult": (1, 2), "num_heads": 2, "num_head_channels": -1},
            **{"transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1]},
            **{"transformer_depth_middle": 1, "context_dim": 16, "use_spatial_transformer": True},
            **{"use_linear_in_transformer": False, "legacy": False, "dtype": torch.float32},
            **{"adm_in_channels": None, "use_temporal_attention": False},
        }
    )
    torch.manual_seed(0)
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def convolutions() -> dict[str, object]:
    """Convolutions and linears of a UNet, beside the model and merged by ComfyUI."""
    base = unet()
    names = [
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.0.downsamplers.0.conv",
        "down_blocks.0.attentions.0.proj_in",  # a 1x1 convolution
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.resnets.1.conv2",
    ]
    places = find_places(base.model, names)
    random = torch.Generator().manual_seed(1)
    weights = {
        name: (
            torch.randn(2, 3, place.d_in, generator=random) * 0.2,
            torch.randn(2, place.length, 3, generator=random) * 0.2,
        )
        for name, place in places.items()
    }
    adapter = Adapter(weights, 0.5)

    def run(patcher: ModelPatcher, rows: slice = ALL) -> torch.Tensor:
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))[rows]
        context = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3))[rows]
        comfy.model_management.load_models_gpu([patcher, *patcher.get_nested_additional_models()])
        options = {"wrappers": patcher.wrappers, "cond_or_uncond": [0]}
        sigma = torch.full((len(x),), 3.0)
        return patcher.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options)

    untouched = run(base)
    together = run(beside(base, adapter))
    merged = [
        run(beside(base, adapter.select(i), 1.0, Where(mode="merge")), slice(i, i + 1)).clone()
        for i in range(2)
    ]
    return {
        "found": len(places),
        "wanted": len(names),
        "effect": gap(together, untouched),
        "gap": gap(together, torch.cat(merged)),
        "after": gap(run(base), untouched),
    }


def wan_in_int8() -> dict[str, object]:
    """A small Wan whose MLP is in INT8: its activation is part of the second linear's own kernel there."""
    if not hasattr(comfy.ops, "linear_input_act"):
        return {}
    torch.manual_seed(0)
    sizes = {"dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 1}
    model = comfy.ldm.wan.model.WanModel(**sizes, operations=comfy.ops.disable_weight_init)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    state = dict(model.state_dict())
    how = torch.tensor(list(json.dumps({"format": "int8_tensorwise"}).encode()), dtype=torch.uint8)
    for name in ("blocks.0.ffn.0", "blocks.0.ffn.2"):
        weight = state[f"{name}.weight"]
        scale = weight.abs().max() / 127
        state |= {
            f"{name}.weight": (weight / scale).round().to(torch.int8),
            f"{name}.weight_scale": scale,
            f"{name}.comfy_quant": how,
        }
    base = comfy.sd.load_diffusion_model_state_dict(state)

    def run(patcher: ModelPatcher) -> torch.Tensor:
        random = torch.Generator().manual_seed(2)
        x, text = torch.randn(1, 16, 1, 8, 8, generator=random), torch.randn(1, 5, 4096, generator=random)
        comfy.model_management.load_models_gpu([patcher, *patcher.get_nested_additional_models()])
        options = {"wrappers": patcher.wrappers, "cond_or_uncond": [0]}
        sigma = torch.full((1,), 0.7)
        return patcher.model.apply_model(x, sigma, c_crossattn=text, transformer_options=options).clone()

    def lora(name: str, d_in: int, d_out: int) -> Adapter:
        random = torch.Generator().manual_seed(1)
        A, B = (torch.randn(1, *shape, generator=random) for shape in ((3, d_in), (d_out, 3)))
        return Adapter({name: (A, B)}, 0.3)

    fused, other = lora("blocks.0.ffn.2", 256, 128), lora("blocks.0.self_attn.q", 128, 128)
    untouched = run(base)
    refused = refusals(base, fused)
    auto, merged = apply_adapter(base, fused), beside(base, fused, 1.0, Where(mode="merge"))
    scale = gap(run(merged), untouched)
    return {
        "refused": refused,
        "report": auto.report,
        "gap": gap(run(auto.model), run(merged)) / scale,
        "effect": scale,
        "other layers": apply_adapter(base, other).report,
        "after": gap(run(base), untouched),
    }


def shared(adapter: Adapter) -> dict[str, object]:
    """One linear in two layers, adapted under one of its names and under both."""
    base = backbone()
    blocks = base.model.diffusion_model.single_blocks
    blocks[1].linear2 = blocks[0].linear2
    names = [f"single_transformer_blocks.{i}.proj_out" for i in range(2)]
    one_name = Adapter({names[1]: adapter[names[1]]}, adapter.scale)
    both = Adapter({name: adapter[name] for name in names}, adapter.scale)
    return {"one": against_the_formula(base, one_name), "both": against_the_formula(base, both)}


def other_gpus(adapter: Adapter) -> dict[str, object]:
    """ComfyUI's clones for other devices, with two names of the CPU; the node before and after cloning."""
    base = backbone()
    if not hasattr(base, "deepclone_multigpu"):
        return {}
    second = torch.device("cpu", 0)
    conds = ([cond(2)], [cond(3)])
    expected = sample(beside(base, adapter), *conds)

    def cloned(patcher: ModelPatcher) -> ModelPatcher:
        main = patcher.clone()
        clone = main.deepclone_multigpu(new_load_device=second)
        clone.is_multigpu_base_clone = True
        main.set_additional_models("multigpu", [clone])
        main.match_multigpu_clones()
        return main

    devices: list[tuple[str, int, int]] = []

    def look(executor, *args, **kwargs):
        model = executor.class_obj
        patcher = base_model_of[id(model)]
        devices.append((str(patcher.load_device), id(model), len(shadowed(model))))
        return executor(*args, **kwargs)

    measured = {}
    for order in ("before", "after"):
        both = cloned(beside(base, adapter)) if order == "before" else beside(cloned(base), adapter)
        both.add_wrapper_with_key("diffusion_model", "test", look)
        both.match_multigpu_clones()
        clone = both.get_additional_models_with_key("multigpu")[0]
        base_model_of = {id(p.model.diffusion_model): p for p in (both, clone)}
        sides = [
            p.get_additional_models_with_key(k)
            for p in (both, clone)
            for k in p.additional_models
            if "hywu" in k
        ]
        devices.clear()
        measured[order] = {
            "gap": gap(sample(both, *conds), expected),
            "devices": sorted({device for device, _, _ in devices}),
            "models": len({model for _, model, _ in devices}),
            "shadowed": min(count for _, _, count in devices),
            "sides": len({id(patcher.model) for patchers in sides for patcher in patchers}),
        }
    return measured


def main() -> dict[str, object]:
    """Everything the test asks about."""
    adapter = adapters()
    return {
        "quantised": quantised(adapter.select(0)),
        "convolutions": convolutions(),
        "shared": shared(adapter.select(0)),
        "wan": wan_in_int8(),
        "other_gpus": other_gpus(adapter),
    }


print(json.dumps(main()))
