"""What every reader of a data set fills: samples in the order they are found, and what is wrong."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...errors import HywuError
from .pictures import Picture
from .strings import Paths, Strings

_EXAMPLES = 20  # names kept of each kind of problem
_SEPARATOR = "\0"  # between phrasings of one instruction
_MOST_REPEATS = 1_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """An edit: make `target` of `controls`, as `prompt` says. Images are opened only when asked."""

    target: Picture
    controls: tuple[Picture, ...]
    prompt: str
    also: tuple[str, ...] = ()  # other phrasings of the same instruction

    def phrasing(self, draw: float) -> str:
        """One of the phrasings, all equally likely; `draw` in [0, 1)."""
        return (self.prompt, *self.also)[int(draw * (1 + len(self.also)))]


@dataclass
class Findings:
    """How often something was met, and the first few places."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        """One more."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(place)


class Collector(Sequence[Sample]):
    """Samples, kept small: about 150 bytes each where paths and prompts are of usual length."""

    def __init__(self) -> None:
        self._pictures = Paths()
        self._first = array("Q", [0])  # the first picture of every row, which is its target
        self._prompts = Strings()
        self.repeats = array("I")  # how often each sample counts in an epoch
        self.missing_controls, self.missing_targets, self.orphans = Findings(), Findings(), Findings()
        self.notes: Counter[str] = Counter()

    def add(
        self,
        target: Picture,
        controls: Sequence[Picture],
        prompts: Sequence[str],
        missing: Sequence[str] = (),
        repeats: int = 1,
    ) -> None:
        """Add a sample; `missing`: controls looked for in vain, besides those given that are no files.

        A sample whose target is not there is only counted: nothing can be learned from it. Halves of
        characters, as tools leave that cut captions in JSON, are left out: no tokenizer reads them.
        """
        if not target.exists():
            self.missing_targets.add(str(target))
            return
        there = [control for control in controls if control.exists()]
        lost = list(missing)
        if len(there) < len(controls):
            lost += [str(control) for control in controls if control not in there]
        if lost or not there:
            self.missing_controls.add(f"{target}: {', '.join(lost) or 'none named'}")
        for picture in (target, *there):
            self._pictures.append(picture.to_text())
        self._first.append(len(self._pictures))
        said = _SEPARATOR.join(text.replace(_SEPARATOR, "") for text in prompts or [""])
        whole = said.encode("utf-8", "ignore").decode("utf-8")
        if whole != said:
            self.note("captions with half a character, which is left out")
        self._prompts.append(whole)
        self.repeats.append(repeats)

    def note(self, text: str) -> None:
        """Something to tell the user once, with how often it was met."""
        self.notes[text] += 1

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        places = range(self._first[index], self._first[index + 1])
        target, *controls = (Picture.from_text(self._pictures[place]) for place in places)
        prompt, *also = self._prompts[index].split(_SEPARATOR)
        return Sample(target, tuple(controls), prompt, tuple(also))

    def count_controls(self, index: int) -> int:
        """Number of controls of a sample, without making it."""
        return self._first[index + 1] - self._first[index] - 1

    @property
    def nbytes(self) -> int:
        """Bytes of memory, about."""
        numbers = self._first.itemsize * len(self._first) + self.repeats.itemsize * len(self.repeats)
        return self._pictures.nbytes + self._prompts.nbytes + numbers


def check_repeats(value: object, least: int, place: str) -> int:
    """How often samples are repeated, as a configuration says; HywuError if that is no sensible number."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST_REPEATS:
        raise HywuError(f"{place}: repeats of {value!r} make no sense; give a whole number from {least}.")
    return value
