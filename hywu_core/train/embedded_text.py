"""Recipe `embedded_text`: adapt a pruned multilingual sentence encoder to requests for photographic edits.

Shapes: B batch, N pieces, E = 512 channels, O operations.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.augment import is_chinese, vary
from ..data.instructions import LANGUAGES, phrases
from ..embedded.text import TEXT_ENCODER, EmbeddedTextEncoder
from ..errors import HywuError
from .config import TrainConfig
from .loop import Task
from .text_accuracy import centroids, embed, mean_word, nearest_operations, padded_ids
from .text_source import interface_texts, prune, random_words

# The table of pieces is two thirds of the parameters, and was 8 coarse bits in the original. The memory's
# directions lie far apart.
BITS = {"embedding.weight": 4, "memory": 4}
DEFAULTS = TrainConfig(steps=1200, batch_size=96, lr=1e-3, warmup=20, weight_decay=0.0)


@dataclass(frozen=True)
class TextAdaptation:
    """How the pruned encoder is adapted."""

    vocabulary: int = 12_000
    temperature: float = 0.07  # of the cosine between a request and its operation
    smoothing: float = 0.05
    general_share: float = 0.4  # general texts per request in a batch
    keep_weight: float = 4.0  # of staying where the original was, on general text
    dropout: float = 0.1  # of pieces
    context_share: float = 0.3  # of requests among words that have nothing to do with them

    def __post_init__(self) -> None:
        if self.vocabulary < 5000:
            raise HywuError(
                f"The phrases and characters alone take 5000 pieces; the vocabulary is {self.vocabulary}."
            )
        for name in ("smoothing", "general_share", "dropout", "context_share"):
            if not 0 <= getattr(self, name) < 1:
                raise HywuError(f"{name} is {getattr(self, name)}; it must be at least 0 and less than 1.")
        if self.temperature <= 0 or self.keep_weight < 0:
            raise HywuError(f"temperature must be positive and keep_weight not negative in {self}.")


class _Adapted(nn.Module):
    """What is trained: the encoder, and one direction per operation for its sentences and its mean words.

    Class directions learned under a softmax of cosines are proxies (Movshovitz-Attias, arXiv 1703.07464);
    they start as the operations' centroids and are left behind after training.
    """

    def __init__(self, encoder: EmbeddedTextEncoder, operations: Sequence[str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.directions = nn.Parameter(centroids(encoder, operations))


class TextBatch(NamedTuple):
    """Labels (B,) of the requests; requests and general texts as ids and mask, each (rows, N).

    n_general: general texts of all processes, of which some may have one more than others.
    """

    labels: Tensor
    requests: tuple[Tensor, Tensor]
    general: tuple[Tensor, Tensor]
    n_general: int


class TextTask(Task):
    """Requests for one operation together, in whatever words; text in general where the original had it."""

    name = "embedded_text"

    def __init__(self, settings: TextAdaptation, seed: int, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.operations = sorted({phrase.operation for phrase in phrases("train")})
        self._requests = [[phrase.text for phrase in phrases("train", [name])] for name in self.operations]
        self._interface = interface_texts()
        self._seed = seed
        self._original = prune(settings.vocabulary).requires_grad_(False).to(device)
        self.module = _Adapted(copy.deepcopy(self._original).requires_grad_(True), self.operations).to(device)

    def _request(self, label: int, rng: random.Random, generator: torch.Generator) -> str:
        text = vary(rng.choice(self._requests[label]), generator)
        if rng.random() >= self.settings.context_share:
            return text
        language = "zh" if is_chinese(text) else "en"
        context = random_words(language, rng.randint(1, 4), rng)
        separator = rng.choice((", ", " ", ". ") if language == "en" else ("，", ""))
        return separator.join((context, text) if rng.random() < 0.5 else (text, context))

    def _general(self, rng: random.Random) -> str:
        if rng.random() < 0.25:
            return rng.choice(self._interface)
        return random_words(rng.choice(LANGUAGES), rng.randint(1, 7), rng)

    def _with_dropout(self, text: str, rng: random.Random) -> list[int]:
        first, *inner, last = self.module.encoder.tokenize(text)
        if len(inner) > 2:
            inner = [piece for piece in inner if rng.random() >= self.settings.dropout] or inner
        return [first, *inner, last]

    def batch(self, size: int, generator: torch.Generator, index: int) -> TextBatch:
        """`size` requests for random operations, as people would type them, and general texts beside them.

        Only this process's of both.
        """
        seed = int(torch.randint(2**62, (), generator=generator, device=self.device))
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        labels = rng.choices(range(len(self.operations)), k=size)
        requests = [self._with_dropout(self._request(label, rng, generator), rng) for label in labels]
        n_general = max(1, round(size * self.settings.general_share))
        general = [self.module.encoder.tokenize(self._general(rng)) for _ in range(n_general)]
        own = self.share.rows(size)
        requests, general = requests[own], general[self.share.part(n_general)]
        texts = [tuple(part.to(self.device) for part in padded_ids(rows)) for rows in (requests, general)]
        return TextBatch(torch.tensor(labels[own], device=self.device), *texts, n_general)

    def loss(self, batch: TextBatch, generator: torch.Generator) -> Tensor:
        """Cross-entropy over the operations, by sentence and by mean word, plus the drift on general text."""
        features, sentences = self.module.encoder(*batch.requests)
        queries = torch.stack([sentences, mean_word(features, batch.requests[1])])
        directions = F.normalize(self.module.directions, dim=-1) / self.settings.temperature
        logits = torch.einsum("kbe,koe->kbo", queries, directions).flatten(0, 1)
        smoothing = self.settings.smoothing
        told_apart = 2 * F.cross_entropy(logits, batch.labels.repeat(2), label_smoothing=smoothing)
        with torch.no_grad():
            before = self._original(*batch.general)[1]
        kept = (self.module.encoder(*batch.general)[1] * before).sum()
        drift = 1 - kept * self.share.world / batch.n_general
        return told_apart + self.settings.keep_weight * drift

    def finish(self, out: Path) -> str:
        """Write the encoder's file, read it back, and measure it on the held-out phrases.

        It remembers where each operation's training phrases lie on the average.
        """
        path = out / TEXT_ENCODER.name
        encoder = self.module.encoder.eval()
        encoder = encoder.remembering(centroids(encoder, self.operations)[0].to(encoder.device))
        encoder.save(path, BITS, {"recipe": self.name, "seed": str(self._seed)})
        encoder = EmbeddedTextEncoder.load(path)
        measured = {language: self._accuracy(encoder, language) for language in LANGUAGES}
        measured["kept"] = self._kept(encoder)
        (out / "measured.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        return (
            f"Of the held-out phrases {measured['en']:.1%} (English) and {measured['zh']:.1%} (Chinese) are "
            f"nearest to the operation they ask for, of {len(self.operations)}; general text keeps a mean "
            f"cosine of {measured['kept']:.2f} to the original encoder."
        )

    def _accuracy(self, encoder: EmbeddedTextEncoder, language: str) -> float:
        asked = phrases("held_out", self.operations, (language,))
        found = nearest_operations(encoder, [phrase.text for phrase in asked], self.operations)
        return sum(a.operation == b for a, b in zip(asked, found, strict=True)) / len(asked)

    def _kept(self, encoder: EmbeddedTextEncoder) -> float:
        rng = random.Random(self._seed - 1)
        texts = [self._general(rng) for _ in range(500)]
        return float((embed(encoder, texts)[0] * embed(self._original, texts)[0]).sum(-1).mean())
