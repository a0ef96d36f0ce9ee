"""What a backbone sees beside the noisy latents: text tensors and control latents, of one sample or a batch.

Shapes: B batch, S text tokens, E text channels, Z latent channels, h x w latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import HywuError

EMBEDS, MASK = "embeds", "mask"


@dataclass(frozen=True)
class EditSample:
    """One edit, as encoders gave it: text tensors (1, ...), control latents (1, Z, h, w) in their order."""

    text: Mapping[str, Tensor]
    controls: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class EditInputs:
    """A batch of edits with equally many controls.

    text: "embeds" (B, S, E); "mask" (B, S), True = real, only where prompts of unlike lengths were padded;
        what else the model's encoder gives (B, ...).
    controls: each (B, Z, h, w).
    """

    text: Mapping[str, Tensor]
    controls: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.text[EMBEDS])

    def __getitem__(self, rows: slice | list[int]) -> EditInputs:
        """Some of the rows, in this order."""
        return self._map(lambda tensor: tensor[rows])

    def repeat(self, times: int) -> EditInputs:
        """Every row `times` times, one after the other."""
        return self._map(lambda tensor: tensor.repeat_interleave(times, 0))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> EditInputs:
        """On a device; what is floating point also in a dtype."""
        return self._map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def hidden(self) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, S, E) and mask (B, S) for `conditions.backbone_hidden`: the text as it is read."""
        return self.text[EMBEDS], self.text.get(MASK)

    def _map(self, change: Callable[[Tensor], Tensor]) -> EditInputs:
        text = {name: change(tensor) for name, tensor in self.text.items()}
        return EditInputs(text, tuple(change(control) for control in self.controls))


def collate(samples: Sequence[EditSample]) -> EditInputs:
    """Samples as a batch: texts padded at the end with zeros and masked, the rest stacked.

    HywuError for no sample, and for controls that differ in number or size.
    """
    if not samples:
        raise HywuError("A batch needs at least one sample.")
    layouts = {tuple(tuple(control.shape) for control in sample.controls) for sample in samples}
    if len(layouts) > 1:
        one, other = sorted(layouts)[:2]
        raise HywuError(f"Samples with controls {one} and {other} cannot share a batch.")
    lengths = [sample.text[EMBEDS].shape[1] for sample in samples]
    longest = max(lengths)
    text = {
        name: torch.cat(
            [_padded(s.text[name], longest) if name in (EMBEDS, MASK) else s.text[name] for s in samples]
        )
        for name in samples[0].text
    }
    if min(lengths) < longest and MASK not in text:
        real = torch.arange(longest) < torch.tensor(lengths)[:, None]
        text[MASK] = real.to(text[EMBEDS].device)
    controls = zip(*(sample.controls for sample in samples), strict=True)
    return EditInputs(text, tuple(torch.cat(control) for control in controls))


def _padded(tensor: Tensor, length: int) -> Tensor:
    """(1, S, ...) with zeros (1, length, ...)."""
    missing = length - tensor.shape[1]
    return F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, missing))
