"""Adapters as files that stock loaders read: scale and strength baked into B, provenance in the header.

Loaders disagree about alpha (a `.alpha` key is needed, ignored or an error, depending on loader and
prefix); they all agree on factors without one. Only "native" files, which no stock loader reads, keep the
scale beside the factors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import HywuError
from ..storage import atomic_path, open_safetensors, write_safetensors
from .adapter import Adapter
from .architectures import architecture_of
from .keys import Factors, KeyFormat, from_file, resolve_format, to_file

FORMAT_VERSION = "1"
_FLOATS = {torch.float32, torch.float16, torch.bfloat16, torch.float64}


def save_adapter(
    adapter: Adapter,
    path: str | os.PathLike[str],
    index: int = 0,
    strength: float = 1.0,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    key_format: KeyFormat = "auto",
) -> Path:
    """Write one adapter of the batch to a `.safetensors` file; return its path.

    index: which adapter of the batch.  strength: baked into the file.
    dtype: of the tensors in the file, by default the adapter's own.
    metadata: more header entries; they win over those written by default.
    key_format: "auto" chooses what ComfyUI's and diffusers' stock loaders read, if they know the backbone.

    The adapter's provenance goes into the header as `hywu.*`. The file appears whole or not at all.
    Raises `HywuError` for values that are not finite, a folder that does not exist, or a disk that is full.
    """
    path = Path(path)
    key_format = resolve_format(key_format, adapter)
    scale = adapter.scale * float(strength)
    baked = 1.0 if key_format == "native" else scale
    factors = _export(adapter.select(index), baked, dtype or adapter.dtype)
    header = _header(adapter, path) | {
        "hywu.format_version": FORMAT_VERSION,
        "hywu.key_format": key_format,
        "hywu.strength": repr(float(strength)),
        "hywu.scale": repr(scale if key_format == "native" else 1.0),
    }
    write_safetensors(path, to_file(factors, key_format), header | dict(metadata or {}))
    return path


def save_peft(
    adapter: Adapter,
    folder: str | os.PathLike[str],
    index: int = 0,
    strength: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write one adapter as a PEFT directory (`adapter_config.json`, `adapter_model.safetensors`).

    Raises `HywuError` as `save_adapter` does, and for grouped experts, which PEFT has no names for.
    """
    folder = Path(folder)
    factors = _export(adapter.select(index), adapter.scale * float(strength), dtype or adapter.dtype)
    tensors = {}
    for name, f in factors.items():
        if f.A.dim() != 2:
            raise HywuError(f"Target {name!r} has an expert axis; PEFT directories hold plain matrices only.")
        tensors[f"base_model.model.{name}.lora_A.weight"] = f.A
        tensors[f"base_model.model.{name}.lora_B.weight"] = f.B
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.provenance.get("base"),
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(factors),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HywuError(f"Could not make the folder {folder}: {error}.") from error
    write_safetensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    with atomic_path(folder / "adapter_config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read an adapter of batch 1 from a LoRA file or a PEFT directory, on the CPU and in the file's dtype.

    Reads what `save_adapter` and `save_peft` write, and stock files for FLUX and Qwen-Image (see `keys`).
    Smaller ranks are padded with zeros to the largest. One alpha / rank for all modules becomes the scale;
    different ones are folded into B. Header entries `hywu.*` become the provenance.

    Raises `HywuError` if the file is missing, damaged or no LoRA, or has values that are not finite.
    """
    path = Path(path)
    file_path, peft_scale = _peft(path) if path.is_dir() else (path, None)
    with open_safetensors(file_path) as file:
        header = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    try:
        factors = from_file(tensors, native=header.get("hywu.key_format") == "native")
        adapter = _import(factors, _scale(header) if peft_scale is None else peft_scale, header)
        return adapter.check()
    except HywuError as error:
        raise HywuError(f"{path.name}: {error}") from error


def _export(adapter: Adapter, scale: float, dtype: torch.dtype) -> dict[str, Factors]:
    """The only adapter of a batch, on the CPU, contiguous and sharing no memory, with `scale` in B."""
    adapter = adapter.detach().check()
    exported = {}
    for name, (A, B) in adapter.items():
        B = B.to(torch.promote_types(B.dtype, torch.float32)) * scale
        exported[name] = Factors(_compact(A[0], dtype), _compact(B[0], dtype))
    # A cast can overflow (float16 ends at 65504), and so can the strength.
    Adapter({name: (f.A[None], f.B[None]) for name, f in exported.items()}).check()
    return exported


def _compact(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to("cpu", dtype, copy=True).contiguous()


def _header(adapter: Adapter, path: Path) -> dict[str, str]:
    architecture = architecture_of(adapter)
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": path.stem,
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "modelspec.implementation": "hywu",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(adapter.rank),
    }
    if architecture:
        header["modelspec.architecture"] = architecture.modelspec
        header["ss_base_model_version"] = architecture.base_model_version
    return header | {f"hywu.{key}": str(value) for key, value in adapter.provenance.items()}


def _scale(header: Mapping[str, str]) -> float:
    try:
        return float(header.get("hywu.scale", "1"))
    except ValueError:
        raise HywuError(
            f"its header says the scale is {header['hywu.scale']!r}, which is no number."
        ) from None


def _peft(folder: Path) -> tuple[Path, float]:
    """The weights of a PEFT directory and alpha / r."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise HywuError(f"{folder} is not a PEFT directory: {error!r} in its adapter_config.json.") from error
    for option in ("rank_pattern", "alpha_pattern", "use_dora"):
        if config.get(option):
            raise HywuError(f"{folder} uses PEFT's {option}, which cannot be read.")
    return folder / "adapter_model.safetensors", scale


def _import(factors: Mapping[str, Factors], scale: float, header: Mapping[str, str]) -> Adapter:
    dtype = None
    for name, f in factors.items():
        if not {f.A.dtype, f.B.dtype} <= _FLOATS:
            raise HywuError(
                f"the factors of {name!r} are {f.A.dtype} and {f.B.dtype}, not floating point numbers."
            )
        pair = torch.promote_types(f.A.dtype, f.B.dtype)
        dtype = pair if dtype is None else torch.promote_types(dtype, pair)
    rank = max(f.A.shape[-2] for f in factors.values())
    scales = {f.scale for f in factors.values()}
    shared = scales.pop() if len(scales) == 1 else None
    weights = {}
    for name, f in factors.items():
        B = f.B.to(dtype) if shared is not None else (f.B.float() * f.scale).to(dtype)
        missing = rank - f.A.shape[-2]
        # Padding copies even where nothing is missing: what is mapped to the file would change with the file.
        weights[name] = (
            F.pad(f.A.to(dtype), (0, 0, 0, missing))[None],
            F.pad(B, (0, missing))[None],
        )
    provenance = {
        key.removeprefix("hywu."): value for key, value in header.items() if key.startswith("hywu.")
    }
    return Adapter(weights, scale * (1.0 if shared is None else shared), provenance)
