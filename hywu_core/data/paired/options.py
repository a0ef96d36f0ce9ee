"""What a person can say about a data set beyond what its files say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...errors import HywuError

_ALWAYS = ("convention", "allow_missing_controls")  # what says something about every data set


@dataclass(frozen=True)
class Options:
    """Everything has a default: most data sets need none of this."""

    convention: str | None = None  # a name of `detect.CONVENTIONS`; None: found out
    control_folders: tuple[Path, ...] = ()  # for a plain folder of targets
    caption_ending: str = ".txt"
    base: Path | None = None  # what relative paths of metadata start from, instead of its own folder
    target_column: str | None = None
    control_columns: tuple[str, ...] = ()
    prompt_column: str | None = None
    split: str | None = None  # of a Hugging Face data set
    allow_missing_controls: bool = False

    def __post_init__(self) -> None:
        if self.caption_ending and not self.caption_ending.startswith("."):  # else no caption would be found
            object.__setattr__(self, "caption_ending", f".{self.caption_ending}")

    def refuse_unused(self, uses: Sequence[str], place: str) -> None:
        """HywuError naming the first flag that is given and says nothing about what is at `place`.

        uses: the names of the options that its reader looks at.
        """
        for option in fields(self):
            if option.name not in (*_ALWAYS, *uses) and getattr(self, option.name) != option.default:
                flag = "--" + option.name.replace("_", "-").removesuffix("s")
                raise HywuError(f"{flag} says nothing about {place}; leave it out.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a run folder, with whole paths; what is at its default is left out."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: _plain(value) for name, value in values if value != getattr(Options, name)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Options:
        """The inverse of `to_dict`."""
        made = {"base": Path, "control_folders": _paths, "control_columns": tuple}
        return cls(**{name: made[name](value) if name in made else value for name, value in plain.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value.resolve()) if isinstance(value, Path) else value


def _paths(texts: Iterable[str]) -> tuple[Path, ...]:
    return tuple(map(Path, texts))
