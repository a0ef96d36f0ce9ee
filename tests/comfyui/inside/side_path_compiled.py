# ruff: noqa: E402 (ComfyUI must be opened before it is imported)
"""The side path with stock's "TorchCompileModel": what another adapter makes it compile, in both orders."""

from __future__ import annotations

import json
import sys

# What most servers run with; the one for the CPU counts free memory, and is compiled anew when that changes.
sys.argv[3:] = ["--cpu", "--use-pytorch-cross-attention"]

from flux import adapters, backbone, beside, gap, predict

# isort: split
import comfy_extras.nodes_torch_compile
import torch
from comfy.model_patcher import ModelPatcher
from pack.hywu_core.lora import Adapter
from torch._dynamo.utils import counters

# Not an option of the node's list, but it hands the name on: graphs are captured and guarded as for any other
# backend, and run as they are.
BACKEND = "eager"


def compiled(patcher: ModelPatcher) -> ModelPatcher:
    """The stock node."""
    node = comfy_extras.nodes_torch_compile.TorchCompileModel
    if hasattr(node, "execute"):
        return node.execute(patcher, BACKEND).args[0]
    return node().patch(patcher, BACKEND)[0]


def runs(order: str, base: ModelPatcher, given: list[list[Adapter]]) -> list[dict[str, float]]:
    """The graphs made by each run in turn, and its distance from the run that is not compiled."""
    torch._dynamo.reset()
    counters.clear()
    once, measured = compiled(base), []

    def stacked(patcher: ModelPatcher, adapters: list[Adapter]) -> ModelPatcher:
        for number, adapter in enumerate(adapters):
            patcher = beside(patcher, adapter, 1.0 + number / 3)
        return patcher

    for adapters_of_run in given:
        before = counters["stats"]["unique_graphs"]
        after_node = order == "compile first"
        patcher = stacked(once, adapters_of_run) if after_node else compiled(stacked(base, adapters_of_run))
        batch = max((adapter.batch for adapter in adapters_of_run), default=1)
        result = predict(patcher, batch).clone()
        measured.append(
            {
                "graphs": counters["stats"]["unique_graphs"] - before,
                "gap": gap(result, predict(stacked(base, adapters_of_run), batch)),
            }
        )
    return measured


def main() -> dict[str, object]:
    """Everything the test asks about."""
    base, adapter = backbone(), adapters()
    one, two, three = (adapter.select(i) for i in range(3))
    given = [
        [one],
        [two],
        [three],
        [one, two],
        [two, three],
        [one],
        [adapter],
        [adapter.select([2, 0, 1])],
        [],
    ]
    return {order: runs(order, base, given) for order in ("compile first", "compile last")}


print(json.dumps(main()))
