"""ai-toolkit: a job in YAML or JSON; controls have the file names of their targets, in other folders.

As its loader does: images are searched in subfolders too, controls only directly in their folders; the first
of .jpg, .jpeg, .png and .webp is taken; a caption without the trigger word gets it in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import HywuError
from .collect import Collector, check_repeats
from .folders import (
    check_folder,
    list_images,
    only_dictionaries,
    read_caption,
    read_text,
    resolve,
    stem_of,
    text_setting,
)
from .metadata import read_json
from .options import Options
from .pictures import Picture

USES = ()  # options
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")  # in the order in which controls are searched
_PLACES = ("[trigger]", "[name]")


def read_config(path: Path) -> Any:
    """The content of a YAML or JSON file. HywuError if it is neither."""
    if path.suffix.lower() == ".json":
        return read_json(path)
    import yaml

    try:
        return yaml.safe_load(read_text(path) or "")
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is of a day that no calendar has
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise HywuError(f"{path} is not valid YAML{where}: {problem}.") from error


def recognise(config: Any) -> bool:
    """Whether a configuration is a job of ai-toolkit."""
    return isinstance(config, dict) and (
        "datasets" in config or (isinstance(config.get("config"), dict) and "process" in config["config"])
    )


def read(path: Path, options: Options, into: Collector) -> None:
    """Fill `into` from every data set of the job."""
    config = read_config(path)
    if not recognise(config):
        raise HywuError(f"{path} is no job of ai-toolkit: it has no config with process and datasets.")
    found = False
    for settings, trigger in _datasets(config, str(path)):
        found = True
        place = (
            f"{path}, data set {settings.get('folder_path') or settings.get('dataset_path') or ''}".rstrip()
        )
        _read_one(settings, trigger, place, (Path.cwd(), path.parent), into)
    if not found:
        raise HywuError(f"{path} names no data sets.")


def _datasets(config: Mapping[str, Any], place: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Every data set of a job, with the trigger word of its process."""
    inner = config.get("config") if isinstance(config.get("config"), dict) else {"process": [config]}
    name = str(inner.get("name", ""))
    for process in only_dictionaries(inner.get("process"), f"{place}: process"):
        for settings in only_dictionaries(process.get("datasets") or [], f"{place}: datasets"):
            filled = {
                key: value.replace("[name]", name) if "path" in str(key) and isinstance(value, str) else value
                for key, value in settings.items()
            }
            yield filled, str(process.get("trigger_word") or "")


def _read_one(
    settings: Mapping[str, Any], trigger: str, place: str, bases: Sequence[Path], into: Collector
) -> None:
    frames = settings.get("num_frames") or 1
    if not isinstance(frames, int):
        raise HywuError(f"{place}: num_frames is {frames!r}; it must be a whole number.")
    if frames > 1:
        into.note("data sets of videos are left out")
        return
    if settings.get("control_from_same_folder"):
        raise HywuError(
            f"{place}: control_from_same_folder draws controls at random; name them by control_path."
        )
    ending = text_setting(settings, "caption_ext", place, ".txt")
    ending = ending if ending.startswith(".") else f".{ending}"
    trigger = text_setting(settings, "trigger_word", place, trigger)
    default = text_setting(settings, "default_caption", place, "")
    repeats = check_repeats(settings.get("num_repeats", 1), 1, place)
    controls = [_Folder(resolve(text, *bases), place) for text in _control_paths(settings, place)]
    for target, caption in _targets(settings, place, bases):
        if caption is None:
            caption = read_caption(target, ending)
        caption = _with_trigger((caption or "").strip() or default, trigger)
        found = {folder: folder.image(target) for folder in controls}
        missing = [str(folder.path / f"{target.stem}.*") for folder, path in found.items() if path is None]
        pictures = [Picture(str(path)) for path in found.values() if path is not None]
        into.add(Picture(str(target)), pictures, [caption], missing, repeats)
    for folder in controls:
        for orphan in folder.orphans():
            into.orphans.add(str(orphan))


def _control_paths(settings: Mapping[str, Any], place: str) -> list[str]:
    """The control folders of a data set, in the order in which the model sees them."""
    numbered = [settings.get(f"control_path_{number}") for number in (1, 2, 3)]
    value = [path for path in numbered if path] or settings.get("control_path") or []
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise HywuError(f"{place}: control_path must be a folder or a list of folders, not {value!r}.")
    return paths


def _targets(
    settings: Mapping[str, Any], place: str, bases: Sequence[Path]
) -> Iterator[tuple[Path, str | None]]:
    """Targets, with their captions where a JSON file of the data set has them."""
    name = "dataset_path" if settings.get("dataset_path") else "folder_path"
    source = resolve(text_setting(settings, name, place), *bases)
    if source.is_dir() or name == "folder_path":
        check_folder(source, place)
        for image in list_images(source, endings=_ENDINGS):
            if "_controls" not in image.split("/")[-2:-1]:  # where ai-toolkit keeps controls it made itself
                yield source / image, None
        return
    captions = read_json(source)
    if not isinstance(captions, dict):
        raise HywuError(f"{source} must have images with their captions, and is a JSON list.")
    for image, said in captions.items():
        caption = said.get("caption") if isinstance(said, dict) else None
        yield resolve(image, bases[0], source.parent), caption if isinstance(caption, str) else None


def _with_trigger(caption: str, trigger: str) -> str:
    for mark in _PLACES:
        caption = caption.replace(mark, trigger)
    return f"{trigger} {caption}".strip() if trigger and trigger not in caption else caption


class _Folder:
    """The images directly in a folder of controls, and which of them were asked for."""

    def __init__(self, path: Path, place: str) -> None:
        self.path = check_folder(path, f"{place}: control_path")
        self._names = set(list_images(path, deep=False, endings=_ENDINGS))
        self._used: set[str] = set()

    def image(self, target: Path) -> Path | None:
        """The control of a target, or None."""
        endings = (*_ENDINGS, *(ending.upper() for ending in _ENDINGS))
        stem = stem_of(target.name)
        name = next((stem + ending for ending in endings if stem + ending in self._names), None)
        if name is None:
            return None
        self._used.add(name)
        return self.path / name

    def orphans(self) -> Iterator[Path]:
        """Images that are no control of any target."""
        return (self.path / name for name in sorted(self._names - self._used))
