"""The released generator's own folder (`tencent/HY-WU`), opened as it is and written back.

Such a folder holds `config.json` (see `release_config.py`) and `model.safetensors`, or several shards that
`model.safetensors.index.json` lists. Its tensors have other names than ours, and its attentions keep W_q, W_k
and W_v apart where ours have one matrix: each goes from its shard straight to its rows of that matrix, so
nothing is renamed on disk and nothing is in memory twice.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import HywuError
from ..storage import open_safetensors, temporary_beside, write_safetensors
from .checks import require_finite, require_same_tensors, some
from .model import ParameterGenerator
from .quantize import Weights, quantization_of, quantize_generator
from .release_config import MODEL_TYPE, read_config, write_config

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# Our module (or parameter, where the name ends differently) -> theirs, whose rows follow each other in it.
_OUTSIDE = {
    "condition_in": ("hidden_in",),
    "condition_norm": ("model.norm_input",),
    "bands.0.token_rank": ("model.hw_pos.weight",),
    "bands.0.layer": ("model.layer_pos.weight",),
    "prior_norm": ("model.norm_tokens",),
    "final_norm": ("model.norm_final",),
    "proj_out_A": ("model.proj_out_A",),
    "proj_out_B": ("model.proj_out_B",),
}
_IN_BLOCK = {
    "layer_norm": ("norm1",),
    "layer_attention.qkv": ("self_attn_n.W_q", "self_attn_n.W_k", "self_attn_n.W_v"),
    "layer_attention.out": ("self_attn_n.W_o",),
    "token_norm": ("norm2",),
    "token_attention.qkv": ("self_attn_hw.W_q", "self_attn_hw.W_k", "self_attn_hw.W_v"),
    "token_attention.out": ("self_attn_hw.W_o",),
    "condition_norm": ("norm3",),
    "condition_attention.q": ("self_attn_cross.W_q",),
    "condition_attention.kv": ("self_attn_cross.W_k", "self_attn_cross.W_v"),
    "condition_attention.out": ("self_attn_cross.W_o",),
    "feed_forward_norm": ("norm4",),
    "feed_forward.fc1": ("feed_forward.fc1",),
    "feed_forward.fc2": ("feed_forward.fc2",),
}


class Slot(NamedTuple):
    """Where a tensor of the release lives in our generator: some rows of a parameter."""

    parameter: str
    rows: slice
    shape: tuple[int, ...]


def is_release(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder says in its config.json that it holds a released generator. Never raises."""
    try:
        return _read_json(Path(folder) / CONFIG).get("model_type") == MODEL_TYPE
    except HywuError:
        return False


@contextmanager
def buildable(path: Path) -> Iterator[None]:
    """HywuError naming the file for whatever building a generator from its description raises."""
    try:
        yield
    # Sizes that torch cannot have are its TypeError or RuntimeError, with the calls that led to it below.
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise HywuError(f"{path} describes a generator that cannot be built: {reason}") from error


def load_release(
    folder: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
) -> ParameterGenerator:
    """Open a folder of the release's format as a `ParameterGenerator`.

    device: where the weights go, by default the CPU.  dtype: what they compute in, by default the one they
        are stored in (bfloat16 for the released 8.11B: 16 GB).  quantize: "int8" or "fp8" for the blocks'
        linears, one byte a weight (8.2 GB), see `quantize.py`. Beside the weights, no more than the mapped
        pages of one shard are in memory, and one matrix of the file while it is quantised.

    Raises HywuError before memory is spent if a file is missing or truncated, the index and the shards
    disagree, the config is not a parameter generator's or cannot be built, or the tensors are not those it
    describes; and if a value is not finite.
    """
    folder = Path(folder)
    values = _read_json(folder / CONFIG)
    with buildable(folder / CONFIG), torch.device("meta"):
        generator = ParameterGenerator(*read_config(values))
    slots = _slots(generator)
    shards, dtype = _read_shards(folder, {name: slot.shape for name, slot in slots.items()}, dtype)

    if quantize is not None:
        quantize_generator(generator, quantize)
    weights = Weights(generator, device, dtype)
    for path, names in shards.items():
        with open_safetensors(path) as file:
            for name in names:
                parameter, rows, _ = slots[name]
                part = weights.put(parameter, file.get_tensor(name), rows)
                require_finite(part, name, f"{path} is damaged:")
    generator.load_state_dict(weights.tensors, assign=True)
    generator.encoder_info = {
        "kind": "backbone_hidden",
        "id": "the backbone's last hidden states",
        "dim": generator.config.condition_dim,
    }
    return generator


def save_release(
    generator: ParameterGenerator,
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a generator as a new folder of the release's format, which appears whole or not at all.

    dtype: of the tensors in the files, by default the generator's own; what `load_generator` read without a
        dtype is written back byte for byte.  max_shard_bytes: a larger tensor has a shard for itself.

    Raises HywuError if the folder exists, if the format cannot express the generator (it knows one band from
    layer 0 on, the flat layout and no output gain), if a weight is not finite in that dtype, and for a full
    disk.
    """
    folder = Path(folder)
    if kind := quantization_of(generator):
        raise HywuError(
            f"The release's format has no place for a generator quantised to {kind}; use save_generator."
        )
    if folder.exists():
        raise HywuError(f"Cannot write {folder}: it exists already; give the name of a new folder.")
    if not folder.parent.is_dir():
        raise HywuError(f"Cannot write {folder}: the folder {folder.parent} does not exist.")
    dtype = dtype or generator.dtype
    config = write_config(generator, dtype)
    slots = _slots(generator)
    shards = _cut_into_shards(slots, dtype.itemsize, max_shard_bytes)
    state = generator.state_dict()
    temporary = temporary_beside(folder)
    try:
        temporary.mkdir()
        for shard, names in shards.items():
            tensors = {
                name: state[slots[name].parameter][slots[name].rows].to("cpu", dtype) for name in names
            }
            for name, tensor in tensors.items():
                require_finite(tensor, name, f"Did not write {folder}: as {dtype},")
            write_safetensors(temporary / shard, tensors, {"format": "pt"})
        if len(shards) > 1:
            total = sum(tensor.numel() for tensor in state.values()) * dtype.itemsize
            weight_map = {name: shard for shard, names in shards.items() for name in names}
            _write_json(temporary / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        _write_json(temporary / CONFIG, config)
        os.replace(temporary, folder)
    except OSError as error:
        raise HywuError(f"Could not write {folder}: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def release_tensors(generator: ParameterGenerator) -> dict[str, Tensor]:
    """Every tensor of the release by its name there; views of the generator's own weights."""
    state = generator.state_dict()
    return {name: state[slot.parameter][slot.rows] for name, slot in _slots(generator).items()}


def _slots(generator: ParameterGenerator) -> dict[str, Slot]:
    """Every tensor of the release, by its name there."""
    slots = {}
    for parameter, tensor in generator.state_dict().items():
        names = _release_names(parameter)
        rows = tensor.shape[0] // len(names)
        for number, name in enumerate(names):
            cut = slice(number * rows, (number + 1) * rows)
            slots[name] = Slot(parameter, cut, (rows, *tensor.shape[1:]))
    return slots


def _release_names(parameter: str) -> tuple[str, ...]:
    if parameter in _OUTSIDE:
        return _OUTSIDE[parameter]
    module, _, leaf = parameter.rpartition(".")
    if not module.startswith("blocks."):
        return tuple(f"{name}.{leaf}" for name in _OUTSIDE[module])
    _, number, inside = module.split(".", 2)
    return tuple(f"model.blocks.{number}.{name}.{leaf}" for name in _IN_BLOCK[inside])


def _read_shards(
    folder: Path, expected: Mapping[str, tuple[int, ...]], dtype: torch.dtype | None
) -> tuple[dict[Path, list[str]], torch.dtype]:
    """The tensors of each shard, and the dtype to have them in. Reads and checks headers, no tensor."""
    listed = None if (folder / SINGLE).exists() else _read_index(folder)
    shards: dict[Path, list[str]] = {}
    shapes: dict[str, list[int]] = {}
    stored_as: set[str] = set()
    for shard in [SINGLE] if listed is None else sorted(set(listed.values())):
        path = folder / shard
        with open_safetensors(path) as file:
            shards[path] = list(file.keys())
            for name in shards[path]:
                header = file.get_slice(name)
                shapes[name] = header.get_shape()
                stored_as.add(header.get_dtype())
    if listed is not None:
        found = {(name, path.name) for path, names in shards.items() for name in names}
        if wrong := {name for name, _ in found ^ set(listed.items())}:
            raise HywuError(f"{folder / INDEX} and its shards disagree about where {some(wrong)} is.")
    require_same_tensors(folder, shapes, expected)
    if not stored_as <= _DTYPES.keys() or (dtype is None and len(stored_as) > 1):
        raise HywuError(
            f"The tensors of {folder} are stored as {', '.join(sorted(stored_as))}; "
            f"they must be {', '.join(_DTYPES)}, and all the same unless a dtype is asked for."
        )
    return shards, dtype or _DTYPES[stored_as.pop()]


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    if not path.exists():
        raise HywuError(f"{folder} has neither {SINGLE} nor {INDEX}: the weights are missing.")
    listed = _read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(s, str) for s in listed.values()):
        raise HywuError(f"{path} is damaged: its weight_map is not a table of tensors and shards.")
    for shard in set(listed.values()):
        # A plain name on every system; it may be a link, as in the hub's cache, so it is not resolved.
        if not shard or PureWindowsPath(shard).name != shard:
            raise HywuError(f"{path} names the shard {shard!r}, which is not a plain file name.")
        if not (folder / shard).is_file():
            raise HywuError(f"{path} names the shard {shard}, which is not in the folder.")
    return listed


def _cut_into_shards(slots: Mapping[str, Slot], itemsize: int, limit: int) -> dict[str, list[str]]:
    shards: list[list[str]] = []
    room = 0
    for name, slot in slots.items():
        n_bytes = torch.Size(slot.shape).numel() * itemsize
        if not shards or n_bytes > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= n_bytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, 1)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HywuError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise HywuError(f"{path} is damaged: it is not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise HywuError(f"{path} is damaged: it is not a JSON object.")
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8", newline="\n")
