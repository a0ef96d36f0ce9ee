"""What a generator is told about one edit: a sequence of tokens from the image and the instruction.

Shapes: B batch, S condition tokens, D channels of the encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import HywuError


@dataclass(frozen=True, eq=False)
class Condition:
    """A batch of condition sequences c(x) (paper 3.3).

    tokens: (B, S, D) floating point, as the encoder gave them.
    mask: (B, S) bool, True where a token is real; None says that every token is. None is also the fast path:
        attention without a mask runs on flash kernels. Masked tokens never influence the generated update.
    prompts: the instruction of each, for provenance; None where they are not known. No generator reads them.
    encoder: the id of the encoder that gave the tokens, None where it is not known.

    Raises HywuError when the shapes or dtypes are not these.
    """

    tokens: Tensor
    mask: Tensor | None = None
    prompts: tuple[str, ...] | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or 0 in self.tokens.shape:
            raise HywuError(
                f"Condition tokens have the shape {tuple(self.tokens.shape)}; "
                "they must be (batch, tokens, channels), none of them empty."
            )
        if not self.tokens.is_floating_point():
            raise HywuError(
                f"Condition tokens are {self.tokens.dtype}; they must be floating point features."
            )
        if self.prompts is not None and len(self.prompts) != self.batch:
            raise HywuError(f"A batch of {self.batch} conditions was given {len(self.prompts)} instructions.")
        if self.mask is None:
            return
        if self.mask.dtype != torch.bool or self.mask.shape != self.tokens.shape[:2]:
            raise HywuError(
                f"The condition's mask is {self.mask.dtype} of shape {tuple(self.mask.shape)}; for tokens of "
                f"shape {tuple(self.tokens.shape)} it must be bool of shape {tuple(self.tokens.shape[:2])}."
            )

    @property
    def batch(self) -> int:
        """Number of conditions B."""
        return self.tokens.shape[0]

    @property
    def dim(self) -> int:
        """Channels D of a token."""
        return self.tokens.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self.tokens.device

    def __len__(self) -> int:
        return self.batch

    def __getitem__(self, index: int | slice | Sequence[int]) -> Condition:
        """Some of the conditions, as a batch: an int gives a batch of one."""
        rows = [index] if isinstance(index, int) else index
        prompts = self.prompts
        if prompts is not None:
            prompts = prompts[rows] if isinstance(rows, slice) else tuple(prompts[row] for row in rows)
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, tokens=self.tokens[rows], mask=mask, prompts=prompts)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """Move or cast the tokens; the mask stays bool and moves along."""
        mask = None if self.mask is None else self.mask.to(device=device)
        return replace(self, tokens=self.tokens.to(device=device, dtype=dtype), mask=mask)

    def check(self) -> Condition:
        """Return self; HywuError when a real token is not finite or a condition has no real token at all.

        Reads the values, so it waits for the device: call it where conditions are made, not in a
        training step.
        """
        real = self._dense_mask()
        if not real.any(dim=1).all():
            row = int((~real.any(dim=1)).nonzero()[0])
            raise HywuError(
                f"Condition {row} of {self.batch} has no token that is not masked; give an image or a text."
            )
        bad = ~self.tokens.isfinite().all(dim=2) & real
        if bad.any():
            raise HywuError(
                f"{int(bad.sum())} of {int(real.sum())} condition tokens are not finite; the encoder "
                "overflowed or its weights are damaged."
            )
        return self

    def packed(self) -> Condition:
        """The same real tokens, first and in their order; columns nobody uses are gone, as is a mask of ones.

        RoPE counts places, so only packed conditions mean the same alone and in a batch. Waits for the
        device.
        """
        if self.mask is None:
            return self
        longest = int(self.mask.sum(dim=1).max())
        order = self.mask.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
        mask = self.mask.gather(1, order)
        tokens = self.tokens.gather(1, order[..., None].expand(-1, -1, self.dim))
        return replace(self, tokens=tokens, mask=None if mask.all() else mask)

    def alone(self, index: int) -> Condition:
        """One condition as if it had been encoded by itself: without the padding that the batch put after it.

        Waits for the device.
        """
        one = self[index]
        if one.mask is None:
            return one
        real = one.mask[0].nonzero()
        end = int(real[-1]) + 1 if len(real) else one.tokens.shape[1]
        mask = one.mask[:, :end]
        return replace(one, tokens=one.tokens[:, :end], mask=None if mask.all() else mask)

    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each condition's real tokens and their places: keys for caches and provenance.

        The same on any device, in whatever batch a condition stands and however that pads it; its instruction
        counts by the tokens it became.
        """
        return tuple(self.alone(index)._digest() for index in range(self.batch))

    def _digest(self) -> str:
        digest = hashlib.sha256(str((tuple(self.tokens.shape), self.tokens.dtype)).encode())
        real = self._dense_mask()
        tokens = self.tokens.masked_fill(~real[..., None], 0)
        for tensor in (real, tokens):
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @classmethod
    def stack(cls, conditions: Sequence[Condition]) -> Condition:
        """Join batches of one encoder; shorter sequences are padded on the right and masked.

        The instructions and the encoder stay where every batch knows its own.
        """
        _require_same_dim(conditions)
        encoder = _common_encoder(conditions)
        known = [c.prompts for c in conditions if c.prompts is not None]
        prompts = tuple(p for some in known for p in some) if len(known) == len(conditions) else None
        longest = max(c.tokens.shape[1] for c in conditions)
        padding = [longest - c.tokens.shape[1] for c in conditions]
        tokens = torch.cat([F.pad(c.tokens, (0, 0, 0, p)) for c, p in zip(conditions, padding, strict=True)])
        if not any(padding) and all(c.mask is None for c in conditions):
            return cls(tokens, None, prompts, encoder)
        masks = [F.pad(c._dense_mask(), (0, p)) for c, p in zip(conditions, padding, strict=True)]
        return cls(tokens, torch.cat(masks), prompts, encoder)

    @classmethod
    def concat(cls, conditions: Sequence[Condition]) -> Condition:
        """Join along the token axis: `c = concat[Enc_img(image), Enc_txt(instruction)]` (paper 3.3)."""
        _require_same_dim(conditions)
        if len({c.batch for c in conditions}) > 1:
            raise HywuError(
                f"Cannot concatenate conditions of different batches: {[c.batch for c in conditions]}."
            )
        tokens = torch.cat([c.tokens for c in conditions], dim=1)
        prompts = next((c.prompts for c in conditions if c.prompts is not None), None)
        if all(c.mask is None for c in conditions):
            return cls(tokens, None, prompts)
        return cls(tokens, torch.cat([c._dense_mask() for c in conditions], dim=1), prompts)

    def _dense_mask(self) -> Tensor:
        if self.mask is not None:
            return self.mask
        return torch.ones(self.tokens.shape[:2], dtype=torch.bool, device=self.tokens.device)


def _require_same_dim(conditions: Sequence[Condition]) -> None:
    if not conditions:
        raise HywuError("There are no conditions to join.")
    dims = sorted({c.dim for c in conditions})
    if len(dims) > 1:
        raise HywuError(f"Cannot join conditions of different encoders: they have {dims} channels.")


def _common_encoder(conditions: Sequence[Condition]) -> str | None:
    """The one that all are of, None where it is not known of one."""
    encoders = {c.encoder for c in conditions}
    known = sorted(encoders - {None})
    if len(known) > 1:
        raise HywuError(f"Cannot join conditions of different encoders: they are of {known}.")
    return encoders.pop() if len(encoders) == 1 else None
