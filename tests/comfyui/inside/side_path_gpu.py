"""The side path on a GPU: memory over many adapters, under the memory mode of the command line."""

from __future__ import annotations

import gc
import json

from flux import adapters, backbone, beside, cond, gap, plain_sum, sample

# isort: split
import comfy.model_management
import torch


def main() -> dict[str, object]:
    """Everything the test asks about."""
    device = comfy.model_management.get_torch_device()
    base, one = backbone(), adapters().select(0)
    conds = ([cond(2)], [cond(3)])
    untouched = sample(base, *conds)
    with plain_sum(base, one.to(device=device)):
        expected = sample(base, *conds)
    result = sample(beside(base, one), *conds)
    used = []
    for number in range(60):
        sample(beside(base, one.scaled(1 + number / 100)), *conds, steps=1)
        gc.collect()
        used.append(torch.cuda.memory_allocated(device))
    after = gap(sample(base, *conds), untouched)
    del base
    comfy.model_management.unload_all_models()
    gc.collect()
    return {
        "device": str(device),
        "gap": gap(result, expected),
        "after": after,
        "growth": max(used[40:]) - max(used[10:30]),
        "left_after_freeing": torch.cuda.memory_allocated(device),
    }


print(json.dumps(main()))
