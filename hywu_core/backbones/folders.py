"""Model folders in diffusers' layout, looked over before anything large is read.

A folder has a `model_index.json` and a sub-folder for each part (`transformer`, `vae`, `text_encoder` ...);
of a transformer alone, its own folder will do. Hub ids become folders of the Hugging Face cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import HywuError
from ..storage import open_safetensors

TRANSFORMER = "transformer"
_INDEX = "model_index.json"
_CLASS = "_class_name"
_ENDINGS = ("json", "txt", "model", "jinja", "safetensors")
_VISIBLE = "[!.]*"  # not ._model.safetensors, which macOS leaves on foreign disks
_PROBES, _PROBE = 32, 4096  # a fingerprint looks at this many places of a weights file, this many bytes each


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model, or with its transformer alone; `id` is its hub id or the folder's name."""

    path: Path
    id: str

    @property
    def pipeline(self) -> str | None:
        """The class name in its `model_index.json`, None if there is none."""
        index = self.path / _INDEX
        return str(read_json(index).get(_CLASS)) if index.is_file() else None

    def part(self, name: str) -> Path:
        """The sub-folder of a part; a folder that is a transformer itself is its own."""
        if name == TRANSFORMER and not (self.path / name).is_dir() and self.pipeline is None:
            return self.path
        return self.path / name

    def class_of(self, name: str) -> str:
        """The class of a part, as `model_index.json` or, for a model of diffusers, its config names it."""
        if name == TRANSFORMER:
            return str(read_json(self.part(name) / "config.json").get(_CLASS))
        entry = read_json(self.path / _INDEX).get(name)
        if not isinstance(entry, list) or len(entry) != 2 or not (self.path / name).is_dir():
            raise HywuError(f"{self.path} has no {name}: {_INDEX} and a folder of that name must be there.")
        return str(entry[1])

    def check_weights(self, name: str) -> tuple[Path, ...]:
        """The weights files of a part, each complete; HywuError for a missing or truncated one."""
        files = weight_files(self.part(name))
        for file in files:
            with open_safetensors(file):
                pass  # its header is compared with its length
        return files

    def fingerprint(self, parts: Iterable[str]) -> str:
        """A hash of all files of these parts: small ones whole, of weights the header and samples."""
        digest = hashlib.sha256()
        for name in parts:
            files = (file for ending in _ENDINGS for file in self.part(name).glob(f"{_VISIBLE}.{ending}"))
            for file in sorted(files):
                digest.update(f"{name}/{file.name}\0{file.stat().st_size}\0".encode())
                for sample in _samples(file):
                    digest.update(sample)
        return digest.hexdigest()[:16]


def open_folder(model: str | Path, parts: Sequence[str], allow_download: bool = False) -> ModelFolder:
    """The folder of a model on this disk or, for a hub id `owner/name`, in the Hugging Face cache.

    parts: what will be read of it. allow_download: fetch what the cache does not have; the network is used
    for nothing else and never without it. HywuError where it is not found.
    """
    path = Path(model)
    if path.is_dir():
        full = path.resolve()
        return ModelFolder(path, (full.parent if full.name == TRANSFORMER else full).name)
    if path.exists():
        raise HywuError(f"{model} is a file; give the folder of a model in diffusers' layout, or its hub id.")
    words = str(model).split("/")
    if len(words) != 2 or not all(words) or words[0] in (".", "..", "~") or "\\" in str(model):
        raise HywuError(f"There is no folder {model}.")
    return ModelFolder(_from_hub(str(model), parts, allow_download), str(model))


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a part; of shards those in its index. HywuError where one is missing."""
    index = next(iter(sorted(folder.glob(f"{_VISIBLE}.safetensors.index.json"))), None)
    if index is None:
        files = tuple(sorted(folder.glob(f"{_VISIBLE}.safetensors")))
        if not files:
            raise HywuError(f"{folder} has no weights: no .safetensors file is there.")
        return files
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise HywuError(f"{index} names no weights.")
    files = tuple(folder / str(name) for name in sorted(set(names.values())))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise HywuError(
            f"{folder} lacks {len(missing)} of its {len(files)} weights files, such as {missing[0]}; "
            "copy or download it again."
        )
    return files


def tensor_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in safetensors files, from their headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with open_safetensors(path) as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; HywuError where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HywuError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise HywuError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(data, dict):
        raise HywuError(f"{path} is not a JSON object.")
    return data


def _from_hub(id: str, parts: Sequence[str], allow_download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [_INDEX, "config.json", f"{TRANSFORMER}/config.json"]
    wanted += [f"{part}/*.{ending}" for part in parts for ending in _ENDINGS]
    if TRANSFORMER in parts:
        wanted.append("diffusion_pytorch_model*")  # a transformer alone
    try:
        return Path(snapshot_download(id, allow_patterns=wanted, local_files_only=not allow_download))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        what = "cannot be downloaded" if allow_download else "is no folder, nor in the Hugging Face cache"
        hint = "" if allow_download else "; give a folder, or allow the download"
        reason = str(error).strip().partition("\n")[0]
        raise HywuError(f"The model {id} {what}{hint} ({reason})") from error


def _samples(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if file.suffix != ".safetensors" or size <= _PROBES * _PROBE:
            yield stream.read()
            return
        header = int.from_bytes(stream.read(8), "little")
        yield stream.read(min(header, size))
        for number in range(_PROBES):
            stream.seek((size - _PROBE) * number // (_PROBES - 1))
            yield stream.read(_PROBE)
