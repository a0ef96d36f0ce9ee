"""The phrase bank: what is held out of training is out of its reach."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain

from hywu_core.data import augment
from hywu_core.data.instructions import phrases


def _bare(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _varied(text: str) -> set[str]:
    """A phrase as `vary` may write it, mistypings aside."""
    words = text.split()
    fillers = [i for i, word in enumerate(words) if word.lower().strip(".,!?") in augment._FILLERS]
    shorter = [" ".join(words[:i] + words[i + 1 :]) for i in fillers]
    wrappers = augment._WRAPPERS_ZH if augment.is_chinese(text) else augment._WRAPPERS_EN
    wrapped = [wrapper.format(each) for each in (text, *shorter) for wrapper in wrappers]
    return {_bare(each) for each in (text, *shorter, *wrapped)}


def test_no_held_out_phrase_can_come_up_in_training():
    trained = set(chain.from_iterable(_varied(phrase.text) for phrase in phrases("train")))
    assert [p.text for p in phrases("held_out") if _bare(p.text) in trained] == []


def test_every_phrase_asks_for_one_operation():
    asked = defaultdict(set)
    for phrase in chain(phrases("train"), phrases("held_out")):
        asked[_bare(phrase.text)].add(phrase.operation)
    assert {text: found for text, found in asked.items() if len(found) > 1} == {}
