"""Backbones of diffusers with random weights, and LoRA files for them as other programs write them."""

from __future__ import annotations

import diffusers
import torch
from torch import Tensor

from hywu_core import Adapter, LoraSpec

State = dict[str, Tensor]


def tiny_flux(guidance: bool = False) -> diffusers.FluxTransformer2DModel:
    """A FLUX.1 of one double and two single blocks, 256 wide: ComfyUI opens it."""
    return diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=2,
        joint_attention_dim=96,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
    )


def tiny_qwen() -> diffusers.QwenImageTransformer2DModel:
    """One narrow block of Qwen-Image; ComfyUI knows the true width only, see `qwen_shapes`."""
    return diffusers.QwenImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 6, 6),
    )


def qwen_shapes() -> diffusers.QwenImageTransformer2DModel:
    """One block of Qwen-Image at its true width, without memory."""
    with torch.device("meta"):
        return diffusers.QwenImageTransformer2DModel(num_layers=1)


def random_adapter(spec: LoraSpec, batch: int = 1) -> Adapter:
    """Random updates, about as large as random weights."""
    pairs = {
        t.name: (torch.randn(batch, spec.rank, t.d_in) / 8, torch.randn(batch, t.d_out, spec.rank) / 8)
        for t in spec.targets
    }
    return Adapter(pairs, spec.scale, {"base": "a random model"})


def flux_files(model: diffusers.FluxTransformer2DModel) -> dict[str, State]:
    """LoRA files for all of a FLUX, by the program that names its tensors so."""
    original = original_modules(model)
    targets = {t.name: (t.d_in, t.d_out) for t in LoraSpec.from_module(model, include="*").targets}
    flat = {name.replace(".", "_"): shape for name, shape in targets.items()}
    down_up, A_B = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")
    kohya = {name.replace(".", "_"): shape for name, shape in original.items()}
    eight_bits = lora_tensors("transformer.", targets, A_B)
    return {
        "sd_scripts": lora_tensors("lora_unet_", kohya, down_up, ranks=(4, 2, 8), alphas=(1.0, 4.0)),
        "ai_toolkit_fused": lora_tensors("diffusion_model.", original, A_B),
        "onetrainer": lora_tensors("lora_transformer_", flat, down_up, alphas=(2.0,)),
        "simpletuner": lora_tensors("lycoris_", flat, down_up, ranks=(3, 5), alphas=(3.0, 1.0)),
        "old_diffusers": lora_tensors("transformer.", targets, (".lora.down.weight", ".lora.up.weight")),
        "older_diffusers": lora_tensors(
            "transformer.", targets, (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
        ),
        "eight_bits": {key: t.to(torch.float8_e4m3fn) for key, t in eight_bits.items()},
    }


def qwen_files(model: diffusers.QwenImageTransformer2DModel) -> dict[str, State]:
    """LoRA files for all of a Qwen-Image, by the program that names its tensors so."""
    targets = {t.name: (t.d_in, t.d_out) for t in LoraSpec.from_module(model, include="*").targets}
    flat = {name.replace(".", "_"): shape for name, shape in targets.items()}
    down_up, A_B = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")
    diffsynth = (".lora_A.default.weight", ".lora_B.default.weight")
    return {
        "musubi": lora_tensors("lora_unet_", flat, down_up, ranks=(4, 2), alphas=(1.0, 4.0, 3.0)),
        "lightx2v": lora_tensors("", targets, down_up, alphas=(8.0,)),
        "ai_toolkit": lora_tensors("diffusion_model.", targets, A_B),
        "with_alpha": lora_tensors("diffusion_model.", targets, A_B, ranks=(4, 2), alphas=(1.0, 4.0, 3.0)),
        "diffsynth": lora_tensors("", targets, diffsynth),
    }


def xlabs_file(width: int) -> State:
    """A file of XLabs' trainer: attention processors of one double and one single block."""
    fused, square = (width, 3 * width), (width, width)
    double = {"qkv_lora1": fused, "qkv_lora2": fused, "proj_lora1": square, "proj_lora2": square}
    modules = {f"double_blocks.0.processor.{name}": shape for name, shape in double.items()}
    modules |= {"single_blocks.0.processor.qkv_lora": fused}
    modules |= {"single_blocks.0.processor.proj_lora": (5 * width, width)}
    return lora_tensors("", modules, (".down.weight", ".up.weight"))


def original_modules(model: diffusers.FluxTransformer2DModel) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of the linears of FLUX's first release, by their names there."""
    c = model.config
    h = c.num_attention_heads * c.attention_head_dim
    modules = {
        "img_in": (c.in_channels, h),
        "txt_in": (c.joint_attention_dim, h),
        "time_in.in_layer": (256, h),
        "time_in.out_layer": (h, h),
        "vector_in.in_layer": (c.pooled_projection_dim, h),
        "vector_in.out_layer": (h, h),
        "final_layer.linear": (h, c.in_channels),
        "final_layer.adaLN_modulation.1": (h, 2 * h),
    }
    if c.guidance_embeds:
        modules |= {"guidance_in.in_layer": (256, h), "guidance_in.out_layer": (h, h)}
    for i in range(c.num_layers):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            modules |= {
                f"{block}_mod.lin": (h, 6 * h),
                f"{block}_attn.qkv": (h, 3 * h),
                f"{block}_attn.proj": (h, h),
                f"{block}_mlp.0": (h, 4 * h),
                f"{block}_mlp.2": (4 * h, h),
            }
    for i in range(c.num_single_layers):
        modules |= {
            f"single_blocks.{i}.modulation.lin": (h, 3 * h),
            f"single_blocks.{i}.linear1": (h, 7 * h),
            f"single_blocks.{i}.linear2": (5 * h, h),
        }
    return modules


def lora_tensors(
    prefix: str,
    modules: dict[str, tuple[int, int]],
    suffixes: tuple[str, str],
    ranks: tuple[int, ...] = (4,),
    alphas: tuple[float, ...] = (),
) -> State:
    """Random factors under `prefix + module + suffix`; ranks and alphas taken in turn."""
    state = {}
    for i, (module, (d_in, d_out)) in enumerate(modules.items()):
        rank = ranks[i % len(ranks)]
        state[f"{prefix}{module}{suffixes[0]}"] = torch.randn(rank, d_in) / 8
        state[f"{prefix}{module}{suffixes[1]}"] = torch.randn(d_out, rank) / 8
        if alphas:
            state[f"{prefix}{module}.alpha"] = torch.tensor(alphas[i % len(alphas)])
    return state
