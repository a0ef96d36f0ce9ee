"""Adapters as files that stock loaders read: scale and strength baked into B, provenance in the header.

Loaders disagree about alpha (a `.alpha` key is needed, ignored or an error, depending on loader and
prefix); they all agree on factors without one. Only "native" files, which no stock loader reads, keep the
scale beside the factors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ..errors import HywuError
from ..storage import open_safetensors, write_safetensors
from .adapter import Adapter
from .factors import Factors, baked_factors
from .header import header_of, number_in, parted, told_by
from .keys import (
    PEFT_PREFIX,
    KeyFormat,
    format_of,
    from_file,
    resolve_format,
    text_encoder_parts,
    to_file,
)
from .peft import CONFIG, WEIGHTS, embedded_config, read_config

_FLOATS = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
_EIGHT_BITS = {torch.float8_e4m3fn, torch.float8_e5m2}  # storage only; every value is one of float16's too


def save_adapter(
    adapter: Adapter,
    path: str | os.PathLike[str],
    index: int = 0,
    strength: float = 1.0,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    key_format: KeyFormat = "auto",
    include_prompt: bool = False,
    new: bool = False,
) -> Path:
    """Write one adapter of the batch to a `.safetensors` file; return its path.

    index: which adapter of the batch.  strength: baked into the file.
    dtype: of the tensors in the file, by default the adapter's own.
    metadata: more header entries; they win over those written by default.
    key_format: "auto" chooses what ComfyUI's and diffusers' stock loaders read, if they know the backbone.
    include_prompt: also write the instruction, if the adapter knows it.
    new: refuse to replace a file (`storage.AlreadyThereError`).

    The adapter's provenance goes into the header as `hywu.*`. The file appears whole or not at all.
    Raises `HywuError` for values that are not finite, a folder that does not exist, or a disk that is full.
    """
    path = Path(path)
    key_format = resolve_format(key_format, adapter, adapter.provenance.get("key_format"))
    one = adapter.select(index)
    beside = adapter.scale * float(strength) if key_format == "native" else 1.0
    factors = baked_factors(one, _baked(adapter, strength, key_format), dtype)
    header = header_of(one, path.stem, strength, key_format, beside, include_prompt)
    tensors = to_file(factors, key_format, adapter.provenance.get("base", ""))
    write_safetensors(path, tensors, header | dict(metadata or {}), new=new)
    return path


def check_saving(
    adapter: Adapter,
    strength: float = 1.0,
    dtype: torch.dtype | None = None,
    key_format: KeyFormat | None = "auto",
) -> None:
    """Make the factors of each adapter of the batch as they will be saved, one at a time; nothing is written.

    key_format: None is a PEFT directory.

    Raises `HywuError` for values that are not finite, or would not be in the file, saying in which adapter.
    """
    if key_format is not None:
        key_format = resolve_format(key_format, adapter, adapter.provenance.get("key_format"))
    for index in range(adapter.batch):
        try:
            baked_factors(adapter.select(index), _baked(adapter, strength, key_format), dtype)
        except HywuError as error:
            raise HywuError(f"LoRA {index}: {error}") from error


def _baked(adapter: Adapter, strength: float, key_format: KeyFormat | None) -> float | None:
    """The strength that goes into B; None where scale and strength stay beside it, which must be finite."""
    if key_format != "native":
        return float(strength)
    if not math.isfinite(adapter.scale * strength):
        raise HywuError(f"The LoRA's scale {adapter.scale:g} at strength {strength:g} is not finite.")
    return None


class Loaded(NamedTuple):
    """The adapter that a file holds, and what it does not share with the file.

    of_text_encoders: how many of the file's tensors are not in it.
    growth: how many times as many numbers it has as their factors in the file, by ranks filled up with zeros.
    """

    adapter: Adapter
    of_text_encoders: int
    growth: float


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read an adapter, as `read_adapter` does."""
    return read_adapter(path).adapter


def read_adapter(path: str | os.PathLike[str]) -> Loaded:
    """Read an adapter of batch 1 from a LoRA file or a PEFT directory, on the CPU and in the file's dtype.

    Reads what `save_adapter` and `save_peft` write, and stock files for FLUX and Qwen-Image (see `keys`).
    Smaller ranks are padded with zeros to the largest. One alpha / rank for all modules becomes the scale;
    different ones are folded into B. 8-bit floating point numbers become float16. Header entries `hywu.*`
    become the provenance.

    Raises `HywuError` if the file is missing, damaged or no LoRA, or has values that are not finite.
    """
    path = Path(path)
    in_folder = path.name == WEIGHTS and path.with_name(CONFIG).is_file()
    folder = path if path.is_dir() else path.parent if in_folder else None
    try:
        scaling = read_config(folder) if folder is not None else None
        with open_safetensors(path if folder is None else folder / WEIGHTS) as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        told = told_by(header)
        if scaling is None and not any(key.endswith(".alpha") for key in tensors):
            scaling = embedded_config(header)
        before = _before_names(told)
        factors = from_file(tensors, before, scaling.scale if scaling else None)
        told.setdefault("key_format", format_of(tensors))
        skipped = len(text_encoder_parts(tensors, before))
        adapter = _import(factors, told).check()
        stored = sum(f.A.numel() + f.B.numel() for f in factors.values())
        return Loaded(adapter, skipped, adapter.n_parameters / stored)
    except HywuError as error:
        raise HywuError(f"{path.name}: {error}") from error


def _before_names(told: Mapping[str, str]) -> str | None:
    """What stands before bare target names in a file of ours that has them, by its header; else None."""
    if "format_version" in told and "key_format" not in told:  # of `save_peft`
        return PEFT_PREFIX
    return "" if told.get("key_format") == "native" else None


def _import(factors: Mapping[str, Factors], told: Mapping[str, str]) -> Adapter:
    """One adapter of all factors: one dtype, one rank, and one scale where they agree on it."""
    dtype = _dtype_of(factors)
    rank = max(f.A.shape[-2] for f in factors.values())
    beside = number_in(told, "scale")
    scales = {name: beside * f.scale for name, f in factors.items()}
    shared = next(iter(scales.values())) if len(set(scales.values())) == 1 else None
    weights = {}
    for name, f in factors.items():
        B = f.B.to(dtype) if shared is not None else (f.B.float() * scales[name]).to(dtype)
        missing = rank - f.A.shape[-2]
        # Padding copies even where nothing is missing: what is mapped to the file would change with the file.
        weights[name] = (
            F.pad(f.A.to(dtype), (0, 0, 0, missing))[None],
            F.pad(B, (0, missing))[None],
        )
    provenance, rows = parted(told)
    return Adapter(weights, 1.0 if shared is None else shared, provenance, rows)


def _dtype_of(factors: Mapping[str, Factors]) -> torch.dtype:
    dtypes = []
    for name, f in factors.items():
        for tensor in (f.A, f.B):
            if tensor.dtype not in _FLOATS | _EIGHT_BITS:
                raise HywuError(f"the factors of {name!r} are {tensor.dtype}, not floating point numbers.")
            dtypes.append(torch.float16 if tensor.dtype in _EIGHT_BITS else tensor.dtype)
    return reduce(torch.promote_types, dtypes)
