"""The instruction phrase bank: how people ask for each photographic operation, in English and Chinese."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import HywuError

_FOLDER = Path(__file__).parent / "phrases"
LANGUAGES = ("en", "zh")
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
