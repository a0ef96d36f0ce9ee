"""Say the same thing as another person would type it: politely, in a hurry, with a typo, in capitals."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

import torch

_WRAPPERS_EN = (
    "please {}", "{} please", "can you {}", "could you {}?", "could you please {}", "i want you to {}",
    "i'd like you to {}", "hey, {}", "just {}", "{}, thanks", "would you {}?", "now {}", "{} for me",
    "please edit this photo: {}", "for this picture: {}", "go ahead and {}", "i need this: {}",
    "{}, if you can", "hi, {}", "let's {}", "try to {}", "{} pls", "kindly {}", "what i want is: {}",
)  # fmt: skip
_WRAPPERS_ZH = (
    "请{}", "帮我{}", "麻烦{}", "{}吧", "能不能{}", "可以{}吗", "我想要{}", "请帮忙{}", "{}，谢谢", "给我{}",
    "把这张照片处理一下：{}", "现在{}", "我希望{}", "请你{}", "麻烦你{}一下", "{}，好吗",
)  # fmt: skip
_FILLERS = frozenset((
    "the", "a", "an", "this", "that", "it", "my", "please", "of", "to", "can", "you", "could", "would",
    "i", "make", "me", "some", "really", "just", "so",
))  # fmt: skip
_CJK = re.compile(r"[\u3400-\u9fff]")


def is_chinese(text: str) -> bool:
    """Whether a text has any Chinese character."""
    return bool(_CJK.search(text))


def vary(text: str, generator: torch.Generator) -> str:
    """One random variation of a phrase; its meaning stays. Often several at once, sometimes none."""

    def chance(p: float) -> bool:
        return bool(torch.rand((), generator=generator) < p)

    def pick(n: int) -> int:
        return int(torch.randint(n, (1,), generator=generator))

    text = text.strip()
    if is_chinese(text):
        if chance(0.4):
            text = _wrap(text, _WRAPPERS_ZH, pick)
        return _end(text, "。！", chance, pick)
    if chance(0.25):
        text = _drop_filler(text, pick)
    if chance(0.4):
        text = _wrap(text, _WRAPPERS_EN, pick)
    if chance(0.2):
        text = _mistype(text, pick)
    if chance(0.1):
        text = text.upper() if chance(0.5) else text.capitalize()
    return _end(text, ".!", chance, pick)


def _wrap(text: str, wrappers: Sequence[str], pick: Callable[[int], int]) -> str:
    bare = text.rstrip(".!?。！？")
    lowered = bare if bare[:2].isupper() or bare.startswith("I ") else bare[:1].lower() + bare[1:]
    return wrappers[pick(len(wrappers))].format(lowered)


def _drop_filler(text: str, pick: Callable[[int], int]) -> str:
    words = text.split()
    fillers = [i for i, word in enumerate(words) if word.lower().strip(string.punctuation) in _FILLERS]
    if len(words) < 3 or not fillers:
        return text
    del words[fillers[pick(len(fillers))]]
    return " ".join(words)


def _mistype(text: str, pick: Callable[[int], int]) -> str:
    """Swap, drop or double one letter inside a word of five letters or more."""
    words = text.split()
    long = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    index = long[pick(len(long))]
    word, at = words[index], 1 + pick(len(words[index]) - 2)
    words[index] = (
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
    )[pick(3)]
    return " ".join(words)


def _end(text: str, marks: str, chance: Callable[[float], bool], pick: Callable[[int], int]) -> str:
    if not chance(0.3):
        return text
    bare = text.rstrip(".!?。！？")
    return bare if chance(0.5) else bare + marks[pick(len(marks))]
