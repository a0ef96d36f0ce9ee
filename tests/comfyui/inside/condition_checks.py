"""What HY-WU Condition checks before any encoder is read, in ComfyUI's own process; the encoder is a stub."""

from __future__ import annotations

import json
from types import SimpleNamespace

from open_comfy import open_comfy

open_comfy()

import torch  # noqa: E402
from pack.hywu_core.conditions import Condition  # noqa: E402
from pack.nodes import condition as node  # noqa: E402

PICTURE = torch.rand(1, 8, 8, 3)
opened: list[object] = []


def encoder_for(generator, download: bool) -> SimpleNamespace:
    """Instead of the one that is read from files, or even downloaded."""
    opened.append(generator)
    return SimpleNamespace(
        id="a stub", encode=lambda images, prompts: Condition(torch.rand(len(prompts), 4, 6))
    )


def generator(kind: str) -> SimpleNamespace:
    return SimpleNamespace(
        generator=SimpleNamespace(encoder_info={"kind": kind, "id": f"a {kind}", "dim": 6})
    )


def told(kind: str, prompt: str, **given) -> dict[str, object]:
    """What comes of it: the condition's encoder and instructions, or the error; and how many were opened."""
    opened.clear()
    try:
        output = node.EncodeCondition.execute(generator=[generator(kind)], prompt=[prompt], **given)
        (condition,) = output.result if hasattr(output, "result") else output.args
        found = {"encoder": condition.encoder, "prompts": condition.prompts}
    except ValueError as error:
        found = {"error": str(error)}
    return found | {"opened": len(opened)}


node.encoder_for = encoder_for
states = {"hidden_states": [[[torch.rand(1, 5, 6), {}]]]}
measured = {"picture": told("siglip2", "darken", image=[PICTURE]), "no picture": told("siglip2", "darken")}
for name, prompt in (("no words", ""), ("words", "darken\n")):
    for per_line in (False, True):
        measured[f"{name} {per_line}"] = told(
            "backbone_hidden", prompt, one_prompt_per_line=(per_line,), **states
        )
measured["no lines"] = told("siglip2", "\n", image=[PICTURE], one_prompt_per_line=(True,))
print(json.dumps(measured))
