"""What every condition encoder offers: a name to be recognised by, and `encode`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from .condition import Condition
from .pictures import Pictures


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
