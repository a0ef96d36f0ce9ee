"""musubi-tuner: a TOML file of data sets, each a folder with captions and a control folder, or a JSONL file.

As its loader does: folders are not searched in depth, an image without a caption file is no sample, controls
are `name.*` first and then `name_0.*`, `name_1.*`; paths in metadata are taken as they stand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import HywuError
from .collect import Collector, check_repeats
from .folders import (
    by_stem,
    check_folder,
    list_images,
    locate,
    match_numbered,
    only_dictionaries,
    read_caption,
    read_text,
    resolve,
    text_setting,
)
from .metadata import Row, read_rows, text_of
from .options import Options
from .pictures import Picture

USES = ("base",)  # options
_CONTROL = re.compile(r"control_path(?:_(\d+))?")


def read(path: Path, options: Options, into: Collector) -> None:
    """Fill `into` from a TOML configuration, or from a JSONL file of its own."""
    if path.suffix.lower() == ".jsonl":
        _add_jsonl(path, options, into, 1)
        return
    config = read_config(path)
    general = config.get("general", {})
    if not isinstance(general, dict):
        raise HywuError(f"{path}: [general] must be a table of settings.")
    bases = (*((options.base,) if options.base else ()), Path.cwd(), path.parent)
    datasets = only_dictionaries(config.get("datasets", []), f"{path}: [[datasets]]")
    for number, settings in enumerate(datasets):
        _read_one({**general, **settings}, f"{path}, data set {number + 1}", bases, options, into)
    if not datasets:
        raise HywuError(f"{path} names no data sets; each begins with [[datasets]].")


def read_config(path: Path) -> dict[str, Any]:
    """The content of a TOML file; HywuError if it is none."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise HywuError(
                f"{path} is TOML; reading it needs one more package: pip install tomli"
            ) from error
    try:
        return tomllib.loads(read_text(path) or "")
    except tomllib.TOMLDecodeError as error:
        raise HywuError(f"{path} is not valid TOML: {error}.") from error


def _read_one(
    settings: Mapping[str, Any], place: str, bases: Sequence[Path], options: Options, into: Collector
) -> None:
    if "video_directory" in settings or "video_jsonl_file" in settings:
        into.note("data sets of videos are left out")
        return
    if settings.get("multiple_target"):
        raise HywuError(f"{place}: multiple_target makes several targets of an image; that is no edit.")
    repeats = check_repeats(settings.get("num_repeats", 1), 1, place)
    if "image_jsonl_file" in settings:
        file = resolve(text_setting(settings, "image_jsonl_file", place), *bases)
        _add_jsonl(file, options, into, repeats)
    else:
        _add_folder(settings, place, bases, into, repeats)


def _add_folder(
    settings: Mapping[str, Any], place: str, bases: Sequence[Path], into: Collector, repeats: int
) -> None:
    folder = check_folder(resolve(text_setting(settings, "image_directory", place), *bases), place)
    ending = text_setting(settings, "caption_extension", place, ".txt")
    controls, orphans = {}, []
    captions = {name: read_caption(folder / name, ending) for name in list_images(folder, deep=False)}
    stems = by_stem(name for name, caption in captions.items() if caption is not None)
    control = None
    if "control_directory" in settings:
        text = text_setting(settings, "control_directory", place)
        control = check_folder(resolve(text, *bases), f"{place}: control_directory")
        controls, orphans = match_numbered(stems, list_images(control, deep=False))
    for caption in captions.values():
        if caption is None:
            into.note(f"images without a caption file ({ending}) are no samples of musubi-tuner")
    for stem, names in stems.items():
        pictures = [Picture(str(control / name)) for name in controls.get(stem, ())]
        missing = [] if pictures or control is None else [str(control / f"{stem}.*")]
        for name in names:
            into.add(Picture(str(folder / name)), pictures, [captions[name].strip()], missing, repeats)
    for name in orphans:
        into.orphans.add(str(control / name))


def _add_jsonl(path: Path, options: Options, into: Collector, repeats: int) -> None:
    bases = [str(base) for base in ((options.base,) if options.base else (Path.cwd(), path.parent))]
    for place, row in read_rows(path):
        if "image_path_1" in row:
            raise HywuError(f"{place} has several targets; that is no edit.")
        target = text_of(row, "image_path_0" if "image_path_0" in row else "image_path", place)
        controls = [locate(text_of(row, name, place), bases) for name in _control_names(row)]
        into.add(
            Picture(locate(target, bases)),
            [Picture(control) for control in controls],
            [text_of(row, "caption", place).strip()],
            repeats=repeats,
        )


def _control_names(row: Row) -> list[str]:
    """control_path, control_path_0, control_path_1, ... of a row, in order of number; nulls are none."""
    matches = [match for name in row if row[name] is not None and (match := _CONTROL.fullmatch(name))]
    return [match[0] for match in sorted(matches, key=lambda match: int(match[1] or -1))]
