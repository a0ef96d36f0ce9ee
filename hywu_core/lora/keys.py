"""Names of LoRA tensors in files: one rule per format, over one table per architecture.

Target names in an `Adapter` are the backbone's own module paths (diffusers names for FLUX and Qwen-Image).
Files name the same modules in other ways: behind a prefix (`transformer.`, `diffusion_model.`,
`base_model.model.`), with all dots flattened to underscores (kohya), and, for FLUX, by the names of its
first release, where q, k, v and the single blocks' MLP are one fused linear. `to_file` and `from_file` are
inverses of each other for every format.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import HywuError
from .architectures import ARCHITECTURES, FLUX, Architecture, architecture_of

KeyFormat = Literal["auto", "comfy", "diffusers", "native", "kohya"]

logger = logging.getLogger("hywu")


@dataclass(frozen=True, eq=False)
class Factors:
    """A module's factors as they stand in a file: A (r, d_in), B (d_out, r); the update is alpha / r * B @ A."""

    A: Tensor
    B: Tensor
    alpha: float | None = None

    @property
    def scale(self) -> float:
        """alpha / r; 1 without an alpha, as every loader has it."""
        return 1.0 if self.alpha is None else self.alpha / self.A.shape[-2]


# Kinds of factor names, the most specific first: (suffix of A, suffix of B).
_SUFFIXES = (
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
)
_DOTTED_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
_TEXT_ENCODER = ("lora_te", "text_encoder")


def resolve_format(key_format: KeyFormat, targets: Iterable[str]) -> KeyFormat:
    """What "auto" means for these targets: "comfy" where stock loaders know the names, else "native".

    Attention-only targets can be FLUX or Qwen-Image; loaders of both accept "diffusers".
    Raises `HywuError` for an unknown format.
    """
    if key_format not in get_args(KeyFormat):
        raise HywuError(f"Unknown key format {key_format!r}; choose one of {', '.join(get_args(KeyFormat))}.")
    if key_format != "auto":
        return key_format
    targets = list(targets)
    if architecture_of(targets):
        return "comfy"
    return "diffusers" if all(FLUX.knows(target) for target in targets) else "native"


def to_file(factors: Mapping[str, Factors], key_format: KeyFormat) -> dict[str, Tensor]:
    """Name the factors of each target for a file; fused modules are joined with block-diagonal B.

    Raises `HywuError` if the format has no names for these targets.
    """
    key_format = resolve_format(key_format, factors)
    architecture = architecture_of(factors)
    if key_format == "kohya":
        return _to_kohya(factors, architecture)
    prefix = {
        "native": "",
        "diffusers": "transformer.",
        "comfy": architecture.prefix if architecture else "diffusion_model.",
    }[key_format]
    tensors = {}
    for name, f in factors.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = f.A
        tensors[f"{prefix}{name}.lora_B.weight"] = f.B
    return tensors


def from_file(tensors: Mapping[str, Tensor], native: bool = False) -> dict[str, Factors]:
    """Find target names and factors in the tensors of a LoRA file of any of the formats above.

    native: the file was written with bare target names, which may look like anything. Text encoder parts are
    skipped with a warning. Raises `HywuError` if there are no factors, if one of a pair is
    missing, or if other kinds of tensors (DoRA, LoKr, biases) are among them: half an adapter is not loaded.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    skipped = 0
    for key, tensor in tensors.items():
        if not native and key.startswith(_TEXT_ENCODER):
            skipped += 1
            continue
        module, part = _split_key(key)
        halves.setdefault(module, {})[part] = tensor
    if skipped:
        logger.warning(
            "Skipped %d text encoder tensors of a LoRA file: only the backbone is adapted.", skipped
        )
    factors: dict[str, Factors] = {}
    for module, parts in halves.items():
        if not {"A", "B"} <= parts.keys():
            raise HywuError(
                f"The LoRA file has only {' and '.join(sorted(parts))} of {module!r}; it is damaged."
            )
        read = _factors(module, parts)
        targets = {module: read} if native else _targets_of(module, read)
        if twice := targets.keys() & factors.keys():
            raise HywuError(f"The LoRA file adapts {min(twice)!r} twice, under different names.")
        factors |= targets
    if not factors:
        raise HywuError(
            "The file holds no LoRA: none of its tensors is named lora_A, lora_B, lora_down or lora_up."
        )
    return factors


def _split_key(key: str) -> tuple[str, str]:
    """'transformer.x.lora_A.weight' -> ('transformer.x', 'A')."""
    if key.endswith(".alpha"):
        return key.removesuffix(".alpha"), "alpha"
    for suffix_A, suffix_B in _SUFFIXES:
        for part, suffix in (("A", suffix_A), ("B", suffix_B)):
            if key.endswith(suffix):
                return key.removesuffix(suffix), part
    raise HywuError(
        f"The tensor {key!r} is not part of a plain LoRA (lora_A, lora_B, alpha); it cannot be used."
    )


def _factors(module: str, parts: Mapping[str, Tensor]) -> Factors:
    A, B = (t[:, :, 0, 0] if t.dim() == 4 and t.shape[2:] == (1, 1) else t for t in (parts["A"], parts["B"]))
    fitting = A.dim() == B.dim() in (2, 3) and A.shape[:-2] == B.shape[:-2] and A.shape[-2] == B.shape[-1]
    if not fitting or 0 in (*A.shape, *B.shape):
        raise HywuError(f"The LoRA factors of {module!r} do not fit: A {tuple(A.shape)}, B {tuple(B.shape)}.")
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise HywuError(f"The alpha of {module!r} has shape {tuple(alpha.shape)}; it must be one number.")
    return Factors(A, B, None if alpha is None else alpha.item())


def _targets_of(module: str, factors: Factors) -> dict[str, Factors]:
    name = module
    for prefix in _DOTTED_PREFIXES:
        name = name.removeprefix(prefix)
    flat = next((prefix for prefix in _FLAT_PREFIXES if name.startswith(prefix)), None)
    if flat:
        name = _unflatten(name.removeprefix(flat))
    return _unfuse(name, factors)


def _unflatten(flat: str) -> str:
    """'double_blocks_3_img_attn_qkv' -> 'double_blocks.3.img_attn.qkv', by the tables: '_' is ambiguous."""
    for architecture in ARCHITECTURES:
        for original, target in architecture.loose.items():
            if flat in (original.replace(".", "_"), target.replace(".", "_")):
                return target
        for blocks, (original_blocks, modules) in architecture.blocks.items():
            match = re.fullmatch(rf"({blocks}|{original_blocks})_(\d+)_(\w+)", flat)
            if match is None:
                continue
            for name in (*modules, *(part for parts in modules.values() for part in parts)):
                if match[3] == name.replace(".", "_"):
                    return f"{match[1]}.{match[2]}.{name}"
    raise HywuError(f"The LoRA file adapts a module {flat!r} that no known backbone has (FLUX, Qwen-Image).")


def _unfuse(name: str, factors: Factors) -> dict[str, Factors]:
    """Rename a module of FLUX's first release; cut a fused one into its targets, which share A."""
    if name in FLUX.loose:
        return {FLUX.loose[name]: factors}
    match = re.fullmatch(r"(double_blocks|single_blocks)\.(\d+)\.(.+)", name)
    if match is None:
        return {name: factors}
    blocks, modules = next((b, m) for b, (original, m) in FLUX.blocks.items() if original == match[1])
    if match[3] not in modules:
        raise HywuError(f"The LoRA file adapts {name!r}, which FLUX does not have.")
    parts = modules[match[3]]
    targets = [f"{blocks}.{match[2]}.{part}" for part in parts]
    if len(parts) == 1:
        return {targets[0]: factors}
    width = factors.A.shape[1]  # q, k and v are as wide as the input; the MLP is the rest
    rest = factors.B.shape[0] - (len(parts) - 1) * width
    if rest <= 0:
        raise HywuError(
            f"{name!r} has {factors.B.shape[0]} outputs; too few for {', '.join(parts)} of {width}."
        )
    slices = factors.B.split([width] * (len(parts) - 1) + [rest])
    return {target: _without_idle_ranks(factors, B) for target, B in zip(targets, slices, strict=True)}


def _without_idle_ranks(factors: Factors, B: Tensor) -> Factors:
    """Leave out the ranks this slice of a fused B does not use: a block-diagonal B comes apart again."""
    used = (B != 0).any(dim=0)
    if not used.any():
        used[0] = True
    return Factors(factors.A[used], B[:, used], factors.scale * int(used.sum()))


def _to_kohya(factors: Mapping[str, Factors], architecture: Architecture | None) -> dict[str, Tensor]:
    if architecture is None:
        raise HywuError(
            "The kohya format has names for FLUX and Qwen-Image only; choose 'native' or 'diffusers'."
        )
    originals: dict[str, dict[str, Factors]] = {}
    fused: dict[str, tuple[str, ...]] = {}
    names = {target: original for original, target in architecture.loose.items()}
    for target, f in factors.items():
        if target in names:
            original, parts = names[target], (target,)
        else:
            blocks, index, module = target.split(".", 2)
            original_blocks, modules = architecture.blocks[blocks]
            original, parts = next((o, p) for o, p in modules.items() if module in p)
            original, parts = (
                f"{original_blocks}.{index}.{original}",
                tuple(f"{blocks}.{index}.{p}" for p in parts),
            )
        originals.setdefault(original, {})[target] = f
        fused[original] = parts
    tensors: dict[str, Tensor] = {}
    for original, members in originals.items():
        if missing := [part for part in fused[original] if part not in members]:
            raise HywuError(
                f"The kohya format stores {', '.join(fused[original])} as one module, but the adapter lacks "
                f"{missing[0]!r}; choose another key format."
            )
        ordered = [members[part] for part in fused[original]]
        A = torch.cat([f.A for f in ordered])
        B = torch.block_diag(*(f.B for f in ordered)) if len(ordered) > 1 else ordered[0].B
        key = "lora_unet_" + original.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = A
        tensors[f"{key}.lora_up.weight"] = B
        tensors[f"{key}.alpha"] = torch.tensor(float(A.shape[0]))
    return tensors
