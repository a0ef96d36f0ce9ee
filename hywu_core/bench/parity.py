"""Random small generators beside the authors' code: the same numbers, whatever the sizes and the dtype."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from ..conditions import Condition
from ..errors import HywuError
from ..generator import ParameterGenerator
from ..generator.release_config import read_config
from ..report import table
from . import official

# Of the largest value. float32 sums in another order; bfloat16 has 8 bits of mantissa, at every step.
LIMITS = {"float32": 1e-5, "bfloat16": 0.05}


def run(repository: Path, cases: int, seed: int = 0) -> dict[str, Any]:
    """Compare `cases` random configs, in float32 and in bfloat16; plain data. HywuError if one differs."""
    choose = random.Random(seed)
    results = []
    for number in range(cases):
        config, batch, n_condition = _random_config(choose)
        torch.manual_seed(seed + number)
        ours = ParameterGenerator(*read_config(config)).eval()
        for parameter in ours.parameters():
            torch.nn.init.normal_(parameter, std=0.2 if parameter.dim() < 2 else parameter.shape[-1] ** -0.5)
        # Bounds that a release never needs: tiles of a few rows must make no difference either.
        ours.activation_bytes = choose.choice([None, 1, 20_000])
        tokens = torch.randn(batch, n_condition, config["input_dim"])
        row = {
            name: config[name]
            for name in ("rank", "dim_accumulation", "d_model", "num_pg_layers", "token_dim")
        }
        row |= {"experts": "mlp.experts" in config["pg_mapping"], "batch": batch, "n_condition": n_condition}
        for name in LIMITS:
            dtype = getattr(torch, name)
            ours = ours.to(dtype)
            theirs = official.build(repository, config, ours)
            with torch.no_grad():
                row[name] = official.compare(ours(Condition(tokens.to(dtype))), theirs(tokens.to(dtype)))
        results.append(row)
    worst = {name: max(row[name] for row in results) for name in LIMITS}
    for name, limit in LIMITS.items():
        if not worst[name] <= limit:
            raise HywuError(
                f"Ours and the official generator differ by {worst[name]:.1e} of the largest value in "
                f"{name}; {limit:.0e} is what rounding explains."
            )
    return {"bench": "parity", "seed": seed, "cases": results, "worst": worst, "limits": LIMITS}


def report(result: dict[str, Any]) -> str:
    """The result as text."""
    header = [name for name in result["cases"][0]]
    rows = [
        [f"{row[name]:.1e}" if isinstance(row[name], float) else str(row[name]) for name in header]
        for row in result["cases"]
    ]
    worst = ", ".join(f"{name} {value:.1e}" for name, value in result["worst"].items())
    return f"{table(header, rows)}\nlargest difference, of the largest value: {worst}"


def _random_config(choose: random.Random) -> tuple[dict[str, Any], int, int]:
    accumulation = choose.choice([1, 2, 4])
    rank = accumulation * choose.choice([1, 2, 4])
    heads, head_dim = choose.choice([1, 2, 3]), 4 * accumulation * choose.choice([1, 2])
    width, inner = choose.choice([16, 24, 40]), choose.choice([8, 32, 50])
    mapping: dict[str, Any] = {
        "self_attn.qkv_proj": {"lora_A_dim": width, "lora_B_dim": 3 * width},
        "mlp.down_proj": {"lora_A_dim": inner, "lora_B_dim": width},
    }
    if choose.random() < 0.5:
        sub = {
            "w1": {"lora_A_dim": width, "lora_B_dim": inner},
            "w2": {"lora_A_dim": inner, "lora_B_dim": width},
        }
        mapping["mlp.experts"] = {"type": "grouped", "num_experts": choose.choice([1, 3]), "sub_weights": sub}
    token_dim = choose.choice([8, 12, 32])
    config = {
        "model_type": "parameter_generator",
        "token_dim": token_dim,
        "output_dim": token_dim,
        "rank": rank,
        "alpha": choose.choice([4, 16, 64]),
        "input_dim": choose.choice([6, 20]),
        "dim_accumulation": accumulation,
        "d_model": heads * head_dim,
        "head_dim": head_dim,
        "num_base_model_layers": choose.choice([1, 2, 5]),
        "num_pg_layers": choose.choice([1, 2, 3]),
        "prefix": "model.layers.",
        "pg_mapping": mapping,
    }
    return config, choose.choice([1, 2, 3]), choose.choice([2, 5, 9])  # theirs fails on a single token
