"""From a condition to an adapter that is known to be sound and says where it came from."""

from __future__ import annotations

import torch

from .conditions import Condition
from .generator import ParameterGenerator
from .lora import Adapter


@torch.no_grad()
def generate(generator: ParameterGenerator, condition: Condition) -> Adapter:
    """One adapter for each condition, on the generator's device, with its provenance.

    Raises HywuError when the condition is of another encoder, or when a generated value is not finite.
    """
    adapter = generator(condition.to(generator.device)).check()
    provenance = {
        "base": generator.backbone_info.get("id"),
        "encoder": generator.encoder_info.get("id"),
        "condition_sha256": condition.digest(),
    } | {f"generator_{key}": value for key, value in generator.provenance.items()}
    known = {key: str(value) for key, value in provenance.items() if value is not None}
    return Adapter(adapter, adapter.scale, known)
