"""SimpleTuner: multidatabackend.json, where an image data set names its controls by `conditioning_data`.

As its loader does: a control has the same path below its folder as the target, `repeats` of 0 is once, every
line of a caption file is a phrasing of its own, and captions of the conditioning data set come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import HywuError
from .collect import Collector, check_repeats
from .folders import (
    by_stem,
    check_folder,
    list_images,
    only_dictionaries,
    read_caption,
    resolve,
    stem_of,
    text_setting,
)
from .metadata import read_json
from .options import Options
from .pictures import Picture

USES = ()  # options
_Settings = Mapping[str, Any]
_NOT_IMAGES = ("masks", "mask")


def recognise(config: Any) -> bool:
    """Whether a JSON file is a list of SimpleTuner's data backends."""
    return (
        isinstance(config, list)
        and bool(config)
        and all(isinstance(entry, dict) and "id" in entry for entry in config)
        and any("instance_data_dir" in entry or "dataset_type" in entry for entry in config)
    )


def read(path: Path, options: Options, into: Collector) -> None:
    """Fill `into` from all image data sets that have conditioning data."""
    entries = only_dictionaries(read_json(path), str(path))
    entries = [entry for entry in entries if not (entry.get("disabled") or entry.get("disable"))]
    by_id = {text_setting(entry, "id", str(path)): entry for entry in entries}
    if len(by_id) < len(entries):
        raise HywuError(f"{path} has several data sets of one id; every id must be its own.")
    images = [entry for entry in entries if _is_target(entry, entries)]
    for entry in images:
        place = f"{path}, data set '{entry['id']}'"
        _read_one(entry, _conditioning(entry, by_id, place), place, (Path.cwd(), path.parent), into)
    if not images:
        raise HywuError(f"{path} has no data set of images.")


def _is_target(entry: _Settings, entries: Sequence[_Settings]) -> bool:
    """Whether an entry has images to learn to make: it is neither a cache nor another's conditioning data."""
    if entry.get("dataset_type", "image") != "image" or "conditioning_type" in entry:
        return False
    return not any(entry["id"] in _ids(other) for other in entries)


def _ids(entry: _Settings) -> list[Any]:
    """The ids of an entry's conditioning data."""
    value = entry.get("conditioning_data") or []
    return value if isinstance(value, list) else [value]


def _conditioning(entry: _Settings, by_id: Mapping[str, _Settings], place: str) -> list[_Settings]:
    """The data sets with an image's controls: those it names, or those that name it as their source."""
    names, known = _ids(entry), list(by_id)
    if lost := [name for name in names if name not in known]:
        raise HywuError(
            f"{place}: conditioning_data names {lost[0]!r}; the enabled data sets are {', '.join(known)}."
        )
    found = [by_id[name] for name in names]
    found = found or [other for other in by_id.values() if other.get("source_dataset_id") == entry["id"]]
    if not found and entry.get("conditioning"):
        raise HywuError(
            f"{place}: its controls are made during training; write them to a folder and name it."
        )
    return [other for other in found if other.get("conditioning_type") not in _NOT_IMAGES]


def _folder(entry: _Settings, place: str, bases: Sequence[Path]) -> Path:
    kind = entry.get("type", "local")
    if kind != "local":
        raise HywuError(f"{place} is of type '{kind}'; only local data sets can be read: download it first.")
    return check_folder(resolve(text_setting(entry, "instance_data_dir", place), *bases), place)


def _read_one(
    entry: _Settings, conditioning: Sequence[_Settings], place: str, bases: Sequence[Path], into: Collector
) -> None:
    folder = _folder(entry, place, bases)
    repeats = check_repeats(entry.get("repeats", 0), 0, place) + 1
    controls = []
    for other in conditioning:
        inside = _folder(other, f"{place}: conditioning data '{other['id']}'", bases)
        names = list_images(inside)
        controls.append((inside, set(names), by_stem(names), other))
    captions = _Captions(entry, place, folder, into)
    instead = None
    if len(controls) == 1 and controls[0][3].get("caption_strategy"):  # of several only the target's are used
        instead = _Captions(controls[0][3], place, controls[0][0], into)
    used: list[set[str]] = [set() for _ in controls]
    for name in list_images(folder):
        pictures, missing, texts = [], [], []
        for (inside, names, stems, _), seen in zip(controls, used, strict=True):
            same = name if name in names else next(iter(stems.get(stem_of(name), ())), None)
            if same is None:
                missing.append(str(inside / name))
                continue
            if same != name:
                into.note("controls of another file type than their target, which SimpleTuner would not find")
            seen.add(same)
            pictures.append(Picture(str(inside / same)))
            if instead is not None:
                texts = instead.of(same)
        into.add(Picture(str(folder / name)), pictures, texts or captions.of(name), missing, repeats)
    for (inside, names, _, _), seen in zip(controls, used, strict=True):
        for name in sorted(names - seen):
            into.orphans.add(str(inside / name))


class _Captions:
    """The captions of a data set, by its caption_strategy."""

    def __init__(self, entry: _Settings, place: str, folder: Path, into: Collector) -> None:
        self._folder, self._into = folder, into
        self._strategy = text_setting(entry, "caption_strategy", place, "")
        if self._strategy not in ("", "textfile", "filename", "instanceprompt", "instance_prompt"):
            raise HywuError(
                f"{place}: caption_strategy '{self._strategy}' cannot be read; use textfile, filename or "
                "instanceprompt."
            )
        self._prompt = text_setting(entry, "instance_prompt", place, "")
        self._prompt_alone = bool(entry.get("only_instance_prompt")) or "prompt" in self._strategy
        self._prompt_first = bool(entry.get("prepend_instance_prompt"))
        self._whole = bool(entry.get("disable_multiline_split"))
        if (self._prompt_alone or self._prompt_first) and not self._prompt:
            raise HywuError(f"{place}: an instance_prompt is asked for, and there is none.")

    def of(self, name: str) -> list[str]:
        """All phrasings for an image."""
        if self._prompt_alone:
            return [self._prompt]
        texts = self._texts(name)
        return [f"{self._prompt} {text}" for text in texts] if self._prompt_first else texts

    def _texts(self, name: str) -> list[str]:
        image = self._folder / name
        text = None if self._strategy == "filename" else read_caption(image)
        if text is None and self._strategy != "textfile":
            if not self._strategy:
                self._into.note("captions made of file names, as SimpleTuner does without a caption_strategy")
            return [image.stem.replace("_", " ")]
        lines = [text or ""] if self._whole else (text or "").split("\n")
        return [line.strip() for line in lines if line.strip()]
