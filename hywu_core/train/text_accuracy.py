"""How well text features tell the operations apart: the nearest operation to what somebody wrote.

Shapes: B texts, N pieces, O operations, E = 512 channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.instructions import phrases
from ..embedded.text import EmbeddedTextEncoder

_CHUNK = 512


def padded_ids(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of piece ids to ids (B, N) and mask (B, N), True = real."""
    tensors = [torch.tensor(row) for row in rows]
    ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


def mean_word(features: Tensor, mask: Tensor) -> Tensor:
    """The normalised mean (B, E) of the layer-normalised word features, the two sentence marks left out."""
    inner = mask.clone()
    inner[:, 0] = False
    inner[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1] = False
    words = F.layer_norm(features, features.shape[-1:])
    return F.normalize((words * inner.unsqueeze(-1)).sum(1), dim=-1)


@torch.no_grad()
def embed(encoder: EmbeddedTextEncoder, texts: Sequence[str]) -> Tensor:
    """The sentence and the mean word of each text, normalised: (2, B, E)."""
    chunks = []
    for start in range(0, len(texts), _CHUNK):
        ids, mask = padded_ids([encoder.tokenize(text) for text in texts[start : start + _CHUNK]])
        mask = mask.to(encoder.device)
        features, sentences = encoder(ids.to(encoder.device), mask)
        chunks.append(torch.stack([sentences, mean_word(features, mask)]).cpu())
    return torch.cat(chunks, dim=1)


def centroids(encoder: EmbeddedTextEncoder, operations: Sequence[str]) -> Tensor:
    """The mean direction (2, O, E) of each operation's training phrases, by sentence and by mean word."""
    bank = phrases("train", list(operations))
    index = {operation: i for i, operation in enumerate(operations)}
    sums = torch.zeros(2, len(operations), encoder.config.width)
    sums.index_add_(
        1, torch.tensor([index[p.operation] for p in bank]), embed(encoder, [p.text for p in bank])
    )
    return F.normalize(sums, dim=-1)


def nearest_operations(
    encoder: EmbeddedTextEncoder, texts: Sequence[str], operations: Sequence[str]
) -> list[str]:
    """For each text the operation whose training phrases it is nearest to, by sentence and words together."""
    scores = torch.einsum("kbe,koe->bo", embed(encoder, texts), centroids(encoder, operations))
    return [operations[i] for i in scores.argmax(dim=1).tolist()]
