"""The side path among models: relatives of FLUX that lack some of its modules, two models in one sampling."""

from __future__ import annotations

import json

from flux import beside, gap, refusals

# isort: split
import comfy.ldm.chroma.model
import comfy.ldm.flux.model
import comfy.sample
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from pack.hywu_core.apply.comfy import apply_adapter
from pack.hywu_core.lora import Adapter

CPU = torch.device("cpu")
SIZES = {
    **{"in_channels": 16, "out_channels": 16, "context_in_dim": 32, "vec_in_dim": 16, "hidden_size": 64},
    **{"mlp_ratio": 4.0, "num_heads": 2, "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10000},
    **{"patch_size": 2, "qkv_bias": True, "guidance_embed": False, "txt_ids_dims": []},
    **{"in_dim": 64, "out_dim": 64, "hidden_dim": 64, "n_layers": 1},  # of what Chroma has for modulation
}
QUERIES = "transformer_blocks.{}.attn.to_q"


def opened(kind: str, sizes: type, depth: int, seed: int = 0) -> ModelPatcher:
    """A random model of one of ComfyUI's own configurations; sizes: the class of those it is told."""
    told = {name: value for name, value in SIZES.items() if name in sizes.__dataclass_fields__}
    config = getattr(comfy.supported_models, kind)(told | {"depth": depth, "dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=CPU)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return ModelPatcher(model, CPU, CPU)


def schnell(depth: int = 1, seed: int = 0) -> ModelPatcher:
    """FLUX schnell: it has no embedding of the guidance."""
    return opened("FluxSchnell", comfy.ldm.flux.model.FluxParams, depth, seed)


def chroma() -> ModelPatcher:
    """Chroma: its blocks have no modulation of their own."""
    return opened("Chroma", comfy.ldm.chroma.model.ChromaParams, 1)


def lora(*names: str) -> Adapter:
    """A random LoRA for linears of 64 to 64, strong enough to be seen."""
    random = torch.Generator().manual_seed(1)
    return Adapter(
        {
            name: tuple(torch.randn(1, *shape, generator=random) for shape in ((3, 64), (64, 3)))
            for name in names
        },
        1.0,
    )


def predict(patcher: ModelPatcher, wrappers: dict | None = None) -> torch.Tensor:
    """One model call as in a sampling of this patcher, with its own wrappers or another's."""
    random = torch.Generator().manual_seed(2)
    x, text, pooled = (torch.randn(1, *shape, generator=random) for shape in ((16, 8, 8), (5, 32), (16,)))
    options = {"wrappers": patcher.wrappers if wrappers is None else wrappers, "cond_or_uncond": [0]}
    patcher.pre_run()
    try:
        call = {"c_crossattn": text, "y": pooled, "transformer_options": options}
        return patcher.model.apply_model(x, torch.full((1,), 0.7), **call).clone()
    finally:
        patcher.cleanup()


def relatives() -> dict[str, list[str]]:
    """What is told about a LoRA of which a relative of FLUX has one of two modules."""
    lacking = {
        "schnell": (schnell(), "time_text_embed.guidance_embedder.linear_1"),
        "chroma": (chroma(), "transformer_blocks.0.norm1.linear"),
    }
    return {
        kind: apply_adapter(base, lora(QUERIES.format(0), missing)).report
        for kind, (base, missing) in lacking.items()
    }


def two_models() -> dict[str, float]:
    """As core's Dual Model CFG Guider samples: the first model's wrappers around the second model too."""
    first = schnell(depth=2)
    applied = beside(first, lora(*(QUERIES.format(i) for i in range(2))))
    measured = {"effect": gap(predict(applied), predict(first))}
    for kind, other in {"as deep": schnell(depth=2, seed=3), "shallower": schnell(depth=1, seed=3)}.items():
        measured[kind] = gap(predict(other, applied.wrappers), predict(other))
    return measured


def anima() -> ModelPatcher:
    """Anima: an adapter of its own reads the text, which ComfyUI runs before sampling."""
    sizes = {
        **{"image_model": "anima", "max_img_h": 32, "max_img_w": 32, "max_frames": 4, "in_channels": 16},
        **{"out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64},
        **{"num_blocks": 1, "num_heads": 2, "crossattn_emb_channels": 1024, "concat_padding_mask": True},
        **{"pos_emb_cls": "rope3d", "pos_emb_learnable": True, "use_adaln_lora": True, "adaln_lora_dim": 8},
    }
    config = comfy.supported_models.Anima(sizes | {"dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=CPU)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return ModelPatcher(model, CPU, CPU)


def before_sampling() -> dict[str, object]:
    """A LoRA on what runs before the first model call: merged by auto, refused beside the model."""
    if not hasattr(comfy.supported_models, "Anima"):
        return {}
    base = anima()
    random = torch.Generator().manual_seed(1)
    A, B = (torch.randn(1, *shape, generator=random) for shape in ((3, 1024), (1024, 3)))
    early = Adapter({"llm_adapter.out_proj": (A, B)}, 1.0)
    refused = refusals(base, early)
    auto = apply_adapter(base, early)

    def drawn(patcher: ModelPatcher) -> torch.Tensor:
        noise = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(2))
        text = torch.randn(1, 7, 1024, generator=torch.Generator().manual_seed(3))
        cond = [[text, {"t5xxl_ids": torch.arange(7), "t5xxl_weights": torch.ones(7)}]]
        settings = (1, 1.0, "euler", "simple", cond, cond, torch.zeros_like(noise))
        with torch.inference_mode():
            return comfy.sample.sample(patcher, noise, *settings, disable_pbar=True, seed=1).clone()

    return {
        "refused": refused,
        "report": auto.report,
        "effect": gap(drawn(auto.model), drawn(base)),
        "in every call": apply_adapter(base, lora("blocks.0.self_attn.q_proj")).report,
    }


def main() -> dict[str, object]:
    """Everything the test asks about."""
    return {"relatives": relatives(), "two models": two_models(), "before sampling": before_sampling()}


print(json.dumps(main()))
