"""Conditions from the backbone's own hidden states, as the released generator reads them.

Shapes: B edits, S tokens, D channels of the backbone.

A multimodal backbone has already looked at image and instruction together; its last hidden state of that pass
is the condition, and no second encoder is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import HywuError
from .condition import Condition
from .pictures import Pictures

HiddenStates = Callable[[Sequence[Pictures] | Tensor, Sequence[str]], tuple[Tensor, Tensor | None]]


def hidden_condition(hidden: Tensor, mask: Tensor | None = None) -> Condition:
    """Hidden states (B, S, D) or (B, 1, S, D), and an attention mask (B, S), non-zero where a token is real.

    Padding on either side is taken out, so an edit's condition does not depend on its neighbours in the
    batch. Raises HywuError for other shapes, values that are not finite, and rows without a token.
    """
    if hidden.ndim == 4 and hidden.shape[1] == 1:
        hidden = hidden[:, 0]
    return Condition(hidden.detach(), None if mask is None else mask.bool()).check().packed()


class BackboneHiddenEncoder:
    """A backbone seen as an encoder.

    id, dim: of the backbone, and its width D.
    hidden_states: runs the backbone on pictures and prompts and returns hidden states and attention mask.
    """

    kind = "backbone_hidden"

    def __init__(self, id: str, dim: int, hidden_states: HiddenStates) -> None:
        self.id = id
        self.dim = dim
        self.hidden_states = hidden_states

    def info(self) -> dict[str, str | int]:
        """What a generator's file says about this encoder."""
        return {"kind": self.kind, "id": self.id, "dim": self.dim}

    @torch.no_grad()
    def encode(self, images: Sequence[Pictures] | Tensor, prompts: Sequence[str]) -> Condition:
        """What the backbone makes of pictures and prompts, (B, S, D); HywuError for another width."""
        condition = replace(hidden_condition(*self.hidden_states(images, prompts)), prompts=tuple(prompts))
        if condition.dim != self.dim:
            raise HywuError(f"The backbone {self.id} gave {condition.dim} channels instead of {self.dim}.")
        return condition
