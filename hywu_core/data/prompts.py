"""Encoded instructions for training: every phrase of the bank, also as people decorate and mistype it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..embedded.text import EmbeddedTextEncoder, TextFeatures
from .augment import vary
from .instructions import phrases

_CHUNK = 2048


class PromptPool:
    """Text features of the training phrases of some operations, drawn uniformly within an operation."""

    def __init__(
        self,
        operations: Sequence[str],
        encoder: EmbeddedTextEncoder,
        variants: int,
        generator: torch.Generator,
    ) -> None:
        """Encode every training phrase as it is and in `variants` varied forms, on the generator's device."""
        starts: list[int] = []
        counts: list[int] = []
        texts: list[str] = []
        seed = torch.Generator().manual_seed(generator.initial_seed())
        for operation in operations:
            plain = [phrase.text for phrase in phrases("train", [operation])]
            varied = [vary(text, seed) for text in plain for _ in range(variants)]
            starts.append(len(texts))
            counts.append(len(plain) + len(varied))
            texts += plain + varied
        device = generator.device
        features = [encoder.encode(texts[i : i + _CHUNK], batched=True) for i in range(0, len(texts), _CHUNK)]
        self._tokens = torch.cat([f.tokens for f in features]).to(device, torch.float16)
        self._mask = torch.cat([f.mask for f in features]).to(device)
        self._pooled = torch.cat([f.pooled for f in features]).to(device)
        self._start = torch.tensor(starts, device=device)
        self._count = torch.tensor(counts, device=device)

    def sample(self, operation: Tensor, generator: torch.Generator) -> TextFeatures:
        """A random wording for each operation index (B,)."""
        draw = torch.rand(len(operation), generator=generator, device=operation.device)
        index = self._start[operation] + (draw * self._count[operation]).long()
        return TextFeatures(
            tokens=self._tokens[index].float(), mask=self._mask[index], pooled=self._pooled[index].float()
        )
