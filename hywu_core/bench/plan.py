"""What a generator would take, from its sizes alone: no weight is made for it."""

from __future__ import annotations

from typing import Any

import torch

from ..generator.memory import memory_plan
from ..generator.release_config import read_config
from ..report import megabytes, table
from .sizes import Size

VARIANTS = (("bfloat16", None), ("bfloat16", "int8"), ("bfloat16", "fp8"), ("float32", None))


def plans(
    size: Size,
    *,
    batch: int,
    device: torch.device,
    activation_bytes: int | None,
    keep_start_bytes: int,
) -> list[dict[str, Any]]:
    """The plan of every way to keep the weights; plain data."""
    description = read_config(size.config)
    rows = []
    for dtype, quantized in VARIANTS:
        plan = memory_plan(
            *description,
            n_condition=size.n_condition,
            batch=batch,
            dtype=getattr(torch, dtype),
            quantized=quantized,
            activation_bytes=activation_bytes,
            keep_start_bytes=keep_start_bytes,
            device=device,
        )
        rows.append({"weights_as": quantized or dtype, "computes_in": dtype} | plan.to_dict())
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """The plans as text."""
    parts = ("weights", "kept", "activation", "condition", "working", "output", "peak")
    return table(
        ["weights as", *parts],
        [[row["weights_as"], *(megabytes(row[part]) for part in parts)] for row in rows],
    )
