"""Which columns of a table hold the target, its controls and the prompt: by name, or as the user says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import HywuError
from .options import Options

# Names that data sets of edits use, likeliest first: diffusers' InstructPix2Pix and Kontext scripts, the data
# sets of InstructPix2Pix, MagicBrush, OmniEdit and ImgEdit, and the names of other trainers.
_TARGETS = (
    "edited_image", "edited_img", "edited", "target_image", "target_img", "target", "output_image",
    "output_img", "output", "after", "image_path", "image",
)  # fmt: skip
_CONTROLS = (
    "original_image", "input_image", "input_img", "source_image", "source_img", "src_img", "src_image",
    "cond_image", "condition_image", "conditioning_image", "control_image", "control_images", "control_path",
    "edit_image", "kontext_images", "reference_image", "input_images", "original", "source", "input",
    "before", "control",
)  # fmt: skip
_PROMPTS = (
    "edit_prompt", "edit_instruction", "edited_prompt_list", "instruction", "edit", "prompt", "caption",
    "text",
)  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Names of columns."""

    target: str
    controls: tuple[str, ...]
    prompt: str


def choose(kinds: Mapping[str, str], options: Options, place: str) -> Columns:
    """The columns of a table whose columns are of these kinds (as `tables.columns` names them).

    Raises HywuError naming the columns there are, and the flag to choose with, where that cannot be told.
    """
    pictures = [name for name, kind in kinds.items() if kind in ("image", "images", "text", "texts")]
    texts = [name for name, kind in kinds.items() if kind in ("text", "texts")]
    target = _one(kinds, options.target_column, _TARGETS, pictures, "--target-column", place)
    controls = options.control_columns or _series(pictures, target)
    if not controls and not options.allow_missing_controls:
        raise HywuError(_unclear(kinds, place, "the controls", "--control-column"))
    for name in controls:
        _one(kinds, name, (), pictures, "--control-column", place)
    prompt = _one(kinds, options.prompt_column, _PROMPTS, texts, "--prompt-column", place)
    return Columns(target, tuple(controls), prompt)


def _one(
    kinds: Mapping[str, str],
    said: str | None,
    known: Sequence[str],
    fitting: Sequence[str],
    flag: str,
    place: str,
) -> str:
    if said is not None:
        if said not in kinds:
            raise HywuError(f"{place} has no column '{said}' ({flag}); there are: {', '.join(kinds)}.")
        if said not in fitting:
            raise HywuError(f"{place}: column '{said}' ({flag}) holds neither images nor text.")
        return said
    found = next((name for name in known if name in fitting), None)
    if found is None:
        what = "the prompt" if flag == "--prompt-column" else "the target"
        raise HywuError(_unclear(kinds, place, what, flag))
    return found


def _series(names: Sequence[str], target: str) -> tuple[str, ...]:
    """A column of controls, or several that count: control_image_0, control_image_1, ..."""
    for known in _CONTROLS:
        pattern = re.compile(rf"{known}(?:_?(\d+))?")
        matches = [match for name in names if name != target and (match := pattern.fullmatch(name))]
        if matches:
            return tuple(match[0] for match in sorted(matches, key=lambda match: int(match[1] or -1)))
    return ()


def _unclear(kinds: Mapping[str, str], place: str, what: str, flag: str) -> str:
    known = ", ".join(kinds)
    return f"{place}: which column has {what} cannot be told; name it with {flag}. There are: {known}."
