"""Folders without any configuration: a folder of targets with captions beside them, and folders of controls.

Both layouts that trainers' users make: the controls of `targets/cat.jpg` are `cat.*` in every control folder
(ai-toolkit), or `cat.*`, `cat_0.*`, `cat_1.*` in one (musubi-tuner).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import HywuError
from .collect import Collector
from .folders import by_stem, check_folder, list_images, match_numbered, read_caption, stem_of
from .options import Options
from .pictures import Picture

USES = ("control_folders", "caption_ending")  # options
_TARGETS = re.compile(r"(target|edit(ed)?|after|output|result|dest|image|img)s?([_-].*)?", re.IGNORECASE)
_NOT_TARGETS = re.compile(
    r"_?(control|source|src|input|before|original|orig|ref|reference|cond|condition)s?([_-]?.*)?",
    re.IGNORECASE,
)


def read(folder: Path, options: Options, into: Collector) -> None:
    """Fill `into` from a folder of targets, or one that holds folders of targets and controls."""
    target, controls = find_folders(folder, options)
    # Controls inside are no targets.
    deep = not any(control.resolve().is_relative_to(target.resolve()) for control in controls)
    add_folders(target, controls, options, into, deep)


def find_folders(folder: Path, options: Options) -> tuple[Path, list[Path]]:
    """(folder of the targets, folders of the controls). HywuError where that cannot be told."""
    if options.control_folders:
        controls = [check_folder(control, "--control-folder") for control in options.control_folders]
        return folder, controls
    inner = [path for path in sorted(folder.iterdir(), key=_natural) if path.is_dir() and path.name[0] != "."]
    holding = [path for path in inner if list_images(path)]
    if list_images(folder, deep=False):
        if not holding:
            raise HywuError(
                f"{folder} has images but no controls; name the folder of these with --control-folder."
            )
        return folder, holding
    if not holding:
        raise HywuError(f"There are no images and no metadata in {folder}.")
    target = _target_of(folder, holding, options.caption_ending)
    return target, [path for path in holding if path != target]


def _target_of(folder: Path, candidates: Sequence[Path], ending: str) -> Path:
    """Which of several folders has the targets: the one with captions, or else with a telling name."""
    captioned = [path for path in candidates if _has_captions(path, ending)]
    if len(captioned) == 1:
        return captioned[0]
    named = [path for path in captioned or candidates if _TARGETS.fullmatch(path.name)]
    if len(named) != 1:
        named = [path for path in captioned or candidates if not _NOT_TARGETS.fullmatch(path.name)]
    if len(named) == 1:
        return named[0]
    names = ", ".join(path.name for path in candidates)
    raise HywuError(
        f"{folder} has the folders {names}; which has the targets cannot be told: put captions ({ending}) "
        "beside the targets alone, or give the targets' folder and name the others with --control-folder."
    )


def _has_captions(folder: Path, ending: str) -> bool:
    return any((folder / (stem_of(name) + ending)).is_file() for name in list_images(folder))


def _natural(path: Path) -> tuple[list[int | str], str]:
    """control_2 before control_10."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.name


def add_folders(
    target: Path,
    controls: Sequence[Path],
    options: Options,
    into: Collector,
    deep: bool = True,
    repeats: int = 1,
) -> None:
    """Add the images of `target`, each with its controls of every folder of `controls`."""
    names = list_images(target, deep)
    stems = by_stem(names)
    matches = []
    for control in controls:
        found, orphans = match_numbered(stems, list_images(control))
        matches.append((control, found))
        for name in orphans:
            into.orphans.add(str(control / name))
    for stem, same in stems.items():
        if len(same) > 1:
            into.note(f"several targets of one name, such as {' and '.join(same)} in {target}")
        pictures = [
            Picture(os.path.join(control, name)) for control, found in matches for name in found.get(stem, ())
        ]
        missing = [os.path.join(control, f"{stem}.*") for control, found in matches if stem not in found]
        for name in same:
            path = os.path.join(target, name)
            caption = (read_caption(path, options.caption_ending) or "").strip()
            into.add(Picture(path), pictures, [caption], missing, repeats)
