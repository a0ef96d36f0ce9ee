"""The `config.json` of the released generator, and of generators of its shape at other scales."""

from __future__ import annotations

from typing import Any

from .release_config import MODEL_TYPE


def release_mapping(width: int, qkv: int, shared: int, expert: int, experts: int) -> dict[str, Any]:
    """The modules of one layer of the released generator's backbone, at a scale."""
    return {
        "self_attn.qkv_proj": {"lora_A_dim": width, "lora_B_dim": qkv},
        "self_attn.o_proj": {"lora_A_dim": width, "lora_B_dim": width},
        "mlp.shared_mlp.gate_and_up_proj": {"lora_A_dim": width, "lora_B_dim": 2 * shared},
        "mlp.shared_mlp.down_proj": {"lora_A_dim": shared, "lora_B_dim": width},
        "mlp.experts": {
            "type": "grouped",
            "num_experts": experts,
            "sub_weights": {
                "w1": {"lora_A_dim": width, "lora_B_dim": expert},
                "w2": {"lora_A_dim": expert, "lora_B_dim": width},
                "w3": {"lora_A_dim": width, "lora_B_dim": expert},
            },
        },
    }


def release_like(
    d_model: int, head_dim: int, blocks: int, layers: int, mapping: dict[str, Any]
) -> dict[str, Any]:
    """As in the release: rank 16, accumulation 4, a token as wide as a row, a condition as the model."""
    return {
        "model_type": MODEL_TYPE,
        "token_dim": d_model // 4,
        "output_dim": d_model // 4,
        "rank": 16,
        "alpha": 64,
        "input_dim": d_model,
        "dim_accumulation": 4,
        "d_model": d_model,
        "head_dim": head_dim,
        "num_base_model_layers": layers,
        "num_pg_layers": blocks,
        "prefix": "model.layers.",
        "pg_mapping": mapping,
    }


def released_config() -> dict[str, Any]:
    """Of the published 8.11B generator for HunyuanImage-3.0: 1,379 tokens of each of 32 layers."""
    return release_like(4096, 128, 24, 32, release_mapping(4096, 6144, 3072, 3072, 64))
