"""The instruction phrase bank: how people ask for each photographic operation, in English and Chinese."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import HywuError

_FOLDER = Path(__file__).parent / "phrases"
_NAMES = {"en": "English", "zh": "Chinese"}
LANGUAGES = tuple(_NAMES)
SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class Phrase:
    """One wording of one operation."""

    operation: str
    language: str
    text: str


@lru_cache
def _bank() -> dict[str, dict[str, dict[str, list[str]]]]:
    bank: dict = {}
    for path in sorted(_FOLDER.glob("*.json")):
        bank.update(json.loads(path.read_text(encoding="utf-8")))
    return bank


def phrases(
    split: str, operations: list[str] | None = None, languages: tuple[str, ...] = LANGUAGES
) -> list[Phrase]:
    """All phrases of a split ('train' or 'held_out'), in a fixed order; HywuError for an unknown name."""
    if split not in SPLITS:
        raise HywuError(f"There is no split '{split}' of the phrases; choose from {', '.join(SPLITS)}.")
    bank = _bank()
    unknown = set(operations or ()) - bank.keys()
    if unknown:
        raise HywuError(f"There are no phrases for {', '.join(sorted(unknown))}.")
    return [
        Phrase(operation, language, text)
        for operation in (operations if operations is not None else bank)
        for language in languages
        for text in bank[operation][language][split]
    ]


def require_phrases(
    name: str, count: int, split: str, operations: Sequence[str], languages: Sequence[str]
) -> None:
    """HywuError unless every operation has `count` phrases in each language; `name` is the setting's."""
    bank = _bank()
    pairs = [(operation, language) for operation in operations for language in languages]
    there = {pair: len(bank[pair[0]][pair[1]][split]) for pair in pairs if pair[0] in bank}
    least = min(there, key=there.__getitem__, default=None)
    if least is not None and there[least] < count:
        operation, language = least
        raise HywuError(
            f"{name} is {count}; there are only {there[least]} {split.replace('_', '-')} phrases for "
            f"{operation} in {_NAMES[language]}."
        )
