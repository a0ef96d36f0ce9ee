"""Adapters as PEFT directories: `adapter_config.json` beside `adapter_model.safetensors`.

Written with alpha equal to rank and everything else in B, so that no reader can scale them differently. Read
with all that PEFT allows for plain LoRA: rank and alpha patterns, and rank-stabilised scaling.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import HywuError
from ..storage import atomic_folder, atomic_path, made_folder, sync, write_safetensors
from .adapter import Adapter
from .factors import baked_factors
from .header import header_of
from .keys import PEFT_PREFIX

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_EMBEDDED_CONFIG = "lora_adapter_metadata"  # where diffusers keeps a PEFT configuration in a LoRA file
_PART = "transformer."  # of a pipeline, there and in the file's names


def save_peft(
    adapter: Adapter,
    folder: str | os.PathLike[str],
    index: int = 0,
    strength: float = 1.0,
    dtype: torch.dtype | None = None,
    include_prompt: bool = False,
    new: bool = False,
) -> Path:
    """Write one adapter of the batch as a PEFT directory; arguments as of `save_adapter`.

    new: the folder must not exist yet.

    A folder appears whole or not at all; one that is there keeps its other files, and all of them on failure.
    Raises `HywuError` as `save_adapter` does, and for grouped experts, which PEFT has no names for.
    """
    folder = Path(folder)
    one = adapter.select(index)
    tensors = {}
    for name, f in baked_factors(one, float(strength), dtype).items():
        if f.A.dim() != 2:
            raise HywuError(f"Target {name!r} has an expert axis; PEFT directories hold plain matrices only.")
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = f.A
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = f.B
    config = json.dumps(_config(adapter), indent=2)
    header = header_of(one, folder.name, strength, None, include_prompt=include_prompt)
    if folder.exists() and not new:
        _write(folder, tensors, header, config)
        return folder
    with nullcontext() if new else made_folder(folder.parent), atomic_folder(folder) as temporary:
        _write(temporary, tensors, header, config)
    return folder


def _write(folder: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], config: str) -> None:
    # Both are on the disk before either replaces an old one: weights beside another's alpha are another LoRA.
    with atomic_path(folder / CONFIG) as temporary:
        temporary.write_text(config, encoding="utf-8")
        sync(temporary)
        write_safetensors(folder / WEIGHTS, tensors, header)


def _config(adapter: Adapter) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.provenance.get("base"),
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _target_modules(adapter),
    }


def _target_modules(names: Iterable[str]) -> list[str] | str:
    """The names, as PEFT matches them: in a list each also stands for every path that ends with it.

    A target outside the layers (FLUX's proj_out) would take the layers' modules of that name along; a string
    is a pattern for the whole path.
    """
    names = list(names)
    if all("." in name for name in names):
        return names
    return "|".join(re.escape(name) for name in names)


@dataclass(frozen=True)
class PeftScaling:
    """What PEFT multiplies B A with: alpha / r of a module, or alpha / sqrt(r)."""

    alpha: float
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    stabilised: bool = False
    prefix: str = ""  # of the file's names, which no pattern knows: they may begin with "^"

    def scale(self, module: str, rank: int) -> float:
        """For a module by its name in the file; the first pattern matching its path, or its end, counts."""
        module = module.removeprefix(self.prefix)
        alphas = (a for p, a in self.alpha_pattern.items() if re.match(rf"(.*\.)?({p})$", module))
        return next(alphas, self.alpha) / (rank**0.5 if self.stabilised else rank)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], prefix: str) -> PeftScaling:
        """From a PEFT configuration, for names with a prefix.

        Raises `HywuError` for what is no plain LoRA, or is damaged.
        """
        kind = str(config.get("peft_type", "LORA")).rpartition(".")[2]
        if kind != "LORA":
            raise HywuError(f"it is PEFT's {kind}, not a LoRA; it cannot be used.")
        for option in ("use_dora", "use_qalora", "fan_in_fan_out"):
            if config.get(option):
                raise HywuError(f"it uses PEFT's {option}, which cannot be read.")
        try:
            rank, alpha = int(config["r"]), float(config["lora_alpha"])
            patterns = {str(k): float(v) for k, v in (config.get("alpha_pattern") or {}).items()}
            for pattern in patterns:
                re.compile(pattern)
        except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
            raise HywuError(f"its PEFT configuration is damaged: {error!r}.") from error
        if rank < 1:
            raise HywuError(f"its PEFT configuration is damaged: its rank is {rank}.")
        return cls(alpha, patterns, bool(config.get("use_rslora")), prefix)


def read_config(folder: Path) -> PeftScaling:
    """The scaling of a PEFT directory. Raises `HywuError` if it is none."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise HywuError(f"it is not a PEFT directory: {error!r} in its {CONFIG}.") from error
    return PeftScaling.from_config(config, PEFT_PREFIX)


def embedded_config(header: Mapping[str, str]) -> PeftScaling | None:
    """The scaling that diffusers wrote into a LoRA file's header, if it did."""
    if _EMBEDDED_CONFIG not in header:
        return None
    try:
        config = json.loads(header[_EMBEDDED_CONFIG])
        ours = {k.removeprefix(_PART): v for k, v in config.items() if k.startswith(_PART)}
    except (ValueError, AttributeError) as error:
        raise HywuError(f"its {_EMBEDDED_CONFIG} is damaged: {error!r}.") from error
    if ours:
        return PeftScaling.from_config(ours, _PART) if "r" in ours else None
    # Of a single model, saved without its pipeline.
    return PeftScaling.from_config(config, "") if "r" in config else None
