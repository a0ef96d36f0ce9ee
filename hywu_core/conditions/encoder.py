"""What every condition encoder offers: what it is recognised by, and `encode`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .condition import Condition
from .pictures import Pictures

# `name` or `owner/name`: no way out of a folder, no drive, no other host.
MODEL_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_SAMPLED = 4096  # numbers of each weight that tell it from others


@runtime_checkable
class ConditionEncoder(Protocol):
    """Turns pictures and instructions into what a generator reads.

    kind, id: which encoder this is ("siglip2") and with which weights; a generator only works with its own.
    dim: channels D of its tokens, the generator's `condition_dim`.

    An edit's tokens are the same bits whatever else is in the batch: caches are keyed by them.
    """

    kind: str
    id: str
    dim: int

    def info(self) -> dict[str, str | int]:
        """What a generator's file says about it: kind, id, dim, and each setting that changes the tokens."""
        ...

    def encode(self, images: Sequence[Pictures] | Tensor, prompts: Sequence[str]) -> Condition:
        """One condition for each prompt; `images` has an entry for each, or is a batch (B, 3, H, W).

        The condition knows its prompts. Raises HywuError for pictures this encoder cannot read.
        """
        ...


def weights_hash(encoder: object) -> str:
    """SHA-256, as hex, of samples of every weight of an encoder's models: its name does not say which it has.

    As they are in memory: other in another dtype, the same on every device. An encoder that keeps it as
    `sha256` has it taken once.
    """
    if isinstance(kept := vars(encoder).get("sha256"), str):
        return kept
    digest = hashlib.sha256()
    for module in vars(encoder).values():
        if isinstance(module, nn.Module):
            for name, tensor in module.state_dict().items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(_sampled(tensor))
    return digest.hexdigest()


def _sampled(tensor: Tensor) -> bytes:
    """Of up to 4096 numbers, evenly spaced. Not a sum: its last bits depend on how many threads add."""
    numbers = tensor.detach().flatten()[:: -(-tensor.numel() // _SAMPLED) or 1]
    return numbers.cpu().contiguous().view(torch.uint8).numpy().tobytes()
