"""DiffSynth-Studio: metadata with `image`, `prompt`, and `edit_image` or `kontext_images`.

An edit image may be one path or, in JSON, a list. Paths start from the data set's base path: by default the
folder of the metadata.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import HywuError
from .collect import Collector
from .folders import locate
from .metadata import Row, read_rows, text_of, texts_of
from .options import Options
from .pictures import Picture

USES = ("base", "target_column", "control_columns", "prompt_column")  # options
CONTROLS = ("edit_image", "kontext_images")
_TARGET, _PROMPT = "image", "prompt"


def recognise(row: Row) -> bool:
    """Whether a row of metadata is of this convention."""
    return _TARGET in row and _PROMPT in row


def read(path: Path, options: Options, into: Collector) -> None:
    """Fill `into` from a metadata file."""
    bases = [str(base) for base in ((options.base,) if options.base else (path.parent, Path.cwd()))]
    target, prompt = options.target_column or _TARGET, options.prompt_column or _PROMPT
    for place, row in read_rows(path):
        names = options.control_columns or [name for name in CONTROLS if name in row]
        if not names and not into and not options.allow_missing_controls:
            raise HywuError(
                f"{place} has no column {' or '.join(CONTROLS)}; there are: {', '.join(map(str, row))}. "
                "Name the right one with --control-column."
            )
        controls = [text for name in names for text in texts_of(row, name, place)]
        source = text_of(row, target, place)
        if not source:
            raise HywuError(f"{place}: '{target}' is empty; it must name the edited image.")
        into.add(
            Picture(locate(source, bases)),
            [Picture(locate(text, bases)) for text in controls],
            texts_of(row, prompt, place),
        )
