"""What a person can say about a data set beyond what its files say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
