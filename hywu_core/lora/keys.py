"""Names of LoRA tensors in files: one rule per format, over one table per architecture.

Target names in an `Adapter` are the backbone's own module paths (diffusers names for FLUX and Qwen-Image).
Files name the same modules in other ways: behind a prefix (`transformer.`, `diffusion_model.`,
`base_model.model.`), with all dots flattened to underscores (kohya), and, for FLUX, by the names of its
first release, where q, k, v and the single blocks' MLP are one fused linear (FLUX.2's targets have these
names themselves). `to_file` and `from_file` are inverses of each other for every format.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import HywuError
from .architectures import ARCHITECTURES, FLUX, Architecture, architecture_for, architecture_of, likeliest
from .factors import Factors

KeyFormat = Literal["auto", "comfy", "diffusers", "native", "kohya"]

logger = logging.getLogger("hywu")


# Kinds of factor names, the most specific first: (suffix of A, suffix of B).
_SUFFIXES = (
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".lora_A", ".lora_B"),
)
_XLABS = re.compile(r"(.+\.processor\.(?:qkv|proj)_lora[12]?)\.(down|up)\.weight")
# Other ways of writing an update, by what only their tensors' names have.
_NOT_LORA = {
    "LoHa": (".hada_w",),
    "LoKr": (".lokr_w", ".lokr_t"),
    "OFT": (".oft_", ".boft_"),
    "GLoRA": (".a1.weight", ".b1.weight"),
    "DoRA": (".dora_scale", ".lora_magnitude_vector"),
    "Tucker-decomposed LoRA": (".lora_mid.",),
    "LoRA with biases": (".lora_B.bias", ".lora_up.bias", ".diff_b"),
    "full difference of weights": (".diff", ".w_norm", ".b_norm", ".set_weight"),
}
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
PEFT_PREFIX = "base_model.model."
_PREFIXES = (PEFT_PREFIX, "diffusion_model.", "transformer.", *_FLAT_PREFIXES)
_TEXT_ENCODER = ("lora_te", "text_encoder")


def resolve_format(key_format: KeyFormat, targets: Iterable[str], came_in: str | None = None) -> KeyFormat:
    """What "auto" means for these targets: "comfy" where stock loaders know the names, else "native".

    Attention-only targets can be FLUX or Qwen-Image; loaders of both accept "diffusers".
    came_in: the format of the file the adapter was read from, kept where the backbone is not known here.
    Raises `HywuError` for an unknown format.
    """
    if key_format not in get_args(KeyFormat):
        raise HywuError(f"Unknown key format {key_format!r}; choose one of {', '.join(get_args(KeyFormat))}.")
    if key_format != "auto":
        return key_format
    targets = list(targets)
    if architecture_of(targets):
        return "comfy"
    if all(FLUX.has(target) for target in targets):
        return "diffusers"
    return came_in if came_in in ("comfy", "diffusers") else "native"


def format_of(keys: Iterable[str]) -> KeyFormat:
    """The format of a file by the prefix its tensors share; "native" if they share none."""
    keys = list(keys)
    formats: dict[str, KeyFormat] = {
        "diffusion_model.": "comfy",
        "transformer.": "diffusers",
        "lora_unet_": "kohya",
    }
    return next((f for prefix, f in formats.items() if all(k.startswith(prefix) for k in keys)), "native")


def to_file(factors: Mapping[str, Factors], key_format: KeyFormat, base: str = "") -> dict[str, Tensor]:
    """Name the factors of each target for a file; scales must be in B already.

    base: the backbone's id, which decides where several have all targets.

    Raises `HywuError` if the format has no names for these targets.
    """
    key_format = resolve_format(key_format, factors)
    architecture = architecture_for(factors, base)
    for name, f in factors.items():
        if f.A.dim() != 2 and key_format != "native":
            raise HywuError(f"Target {name!r} has an expert axis; only 'native' files can hold it.")
    if key_format == "kohya":
        return _to_kohya(factors, architecture)
    comfy = "transformer." if all(FLUX.has(name) for name in factors) else "diffusion_model."
    prefix = {
        "native": "",
        "diffusers": "transformer.",
        "comfy": architecture.prefix if architecture else comfy,
    }[key_format]
    tensors = {}
    for name, f in factors.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = f.A
        tensors[f"{prefix}{name}.lora_B.weight"] = f.B
    return tensors


def from_file(
    tensors: Mapping[str, Tensor],
    before: str | None = None,
    scale: Callable[[str, int], float] | None = None,
) -> dict[str, Factors]:
    """Find target names and factors in the tensors of a LoRA file of any of the formats above.

    before: what the file is known to have before each bare target name, which may look like anything.
    scale: of a module, by the file's name for it and its rank there, where no alpha says it.

    Text encoder parts are skipped with a warning. Raises `HywuError` if there are no factors, if one of a
    pair is missing, or if there are other kinds of tensors (DoRA, LoKr, biases): never half an adapter.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    skipped = text_encoder_parts(tensors, before)
    for key, tensor in tensors.items():
        if key in skipped:
            continue
        module, part = _split_key(key.removeprefix(before or ""))
        halves.setdefault(module, {})[part] = tensor
    if skipped:
        logger.warning(
            "Skipped %d text encoder tensors of a LoRA file: only the backbone is adapted.", len(skipped)
        )
    if not halves:
        if skipped:
            raise HywuError("The file adapts text encoders only; there is nothing in it for the backbone.")
        raise HywuError(
            "The file holds no LoRA: none of its tensors is a lora_A, lora_B, lora_down or lora_up."
        )
    modules = {module: _factors(module, parts) for module, parts in halves.items()}
    if scale is not None:
        modules = {m: replace(f, scale=scale(m, f.A.shape[-2])) for m, f in modules.items()}
    return _renamed(modules) if before is None else modules


def text_encoder_parts(keys: Iterable[str], before: str | None) -> dict[str, None]:
    """The tensors of a file that adapt a text encoder, in order; `before` as of `from_file`."""
    return dict.fromkeys(key for key in keys if before is None and key.startswith(_TEXT_ENCODER))


def _split_key(key: str) -> tuple[str, str]:
    """'transformer.x.lora_A.weight' -> ('transformer.x', 'A')."""
    if key.endswith(".alpha"):
        return key.removesuffix(".alpha"), "alpha"
    if match := _XLABS.fullmatch(key):
        return match[1], "A" if match[2] == "down" else "B"
    for suffix_A, suffix_B in _SUFFIXES:
        for part, suffix in (("A", suffix_A), ("B", suffix_B)):
            if key.endswith(suffix):
                return key.removesuffix(suffix), part
    kind = next((kind for kind, marks in _NOT_LORA.items() if any(mark in key for mark in marks)), None)
    if kind:
        raise HywuError(f"The file is a {kind} ({key!r}), not a plain LoRA; convert it to a LoRA first.")
    raise HywuError(
        f"The tensor {key!r} is not part of a plain LoRA (lora_A, lora_B, alpha); it cannot be used."
    )


def _factors(module: str, parts: Mapping[str, Tensor]) -> Factors:
    if not {"A", "B"} <= parts.keys():
        raise HywuError(f"The LoRA file has only {' and '.join(sorted(parts))} of {module!r}; it is damaged.")
    A, B = (t[:, :, 0, 0] if t.dim() == 4 and t.shape[2:] == (1, 1) else t for t in (parts["A"], parts["B"]))
    fitting = A.dim() == B.dim() in (2, 3) and A.shape[:-2] == B.shape[:-2] and A.shape[-2] == B.shape[-1]
    if not fitting or 0 in (*A.shape, *B.shape):
        raise HywuError(f"The LoRA factors of {module!r} do not fit: A {tuple(A.shape)}, B {tuple(B.shape)}.")
    alpha = parts.get("alpha")
    if alpha is not None and (alpha.numel() != 1 or alpha.is_complex()):
        raise HywuError(f"The alpha of {module!r} has shape {tuple(alpha.shape)}; it must be one number.")
    return Factors(A, B, 1.0 if alpha is None else float(alpha.item()) / A.shape[-2])


def _renamed(modules: Mapping[str, Factors]) -> dict[str, Factors]:
    """From the file's module names to target names; fused modules come apart."""
    architecture = likeliest(
        {_without_prefix(module): (f.A.shape[-1], f.B.shape[-2]) for module, f in modules.items()}
    )
    renamed: dict[str, Factors] = {}
    for module, factors in modules.items():
        name = _without_prefix(module)
        targets = architecture.targets_of(name) if architecture else None
        if targets is None and module.startswith(_FLAT_PREFIXES):
            raise HywuError(
                f"The LoRA file adapts {module!r}, which neither FLUX nor Qwen-Image has; it was made for "
                "another model."
            )
        if architecture and architecture.turns(name):
            factors = _turned(factors)
        cut = _cut(targets or (name,), factors)  # a dotted name that no table has is the module's path itself
        if twice := cut.keys() & renamed.keys():
            raise HywuError(f"The LoRA file adapts {min(twice)!r} twice, under different names.")
        renamed |= cut
    return renamed


def _without_prefix(module: str) -> str:
    """The name in its container, whose prefix it may have too; PEFT may have wrapped a whole container."""
    inner = _taken_out(module)
    if module.startswith(PEFT_PREFIX):
        innermost = _taken_out(inner)
        if any(architecture.targets_of(innermost) for architecture in ARCHITECTURES):
            return innermost
    return inner


def _taken_out(module: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if module.startswith(prefix)), "")
    return module.removeprefix(prefix)


def _cut(targets: tuple[str, ...], factors: Factors) -> dict[str, Factors]:
    """A fused module's targets share A and own slices of B: q, k, v as wide as the input, then the MLP."""
    if len(targets) == 1:
        return {targets[0]: factors}
    outputs, width = factors.B.shape[0], factors.A.shape[-1]
    widths = [width] * (len(targets) - 1)
    if outputs <= sum(widths):
        raise HywuError(
            f"A fused module has {outputs} outputs; too few for {', '.join(targets)} of {width} each."
        )
    slices = factors.B.split([*widths, outputs - sum(widths)])
    return {target: _without_idle_ranks(factors, B) for target, B in zip(targets, slices, strict=True)}


def _turned(factors: Factors) -> Factors:
    """The two halves of the output rows in the other order."""
    return Factors(factors.A, torch.cat(factors.B.chunk(2)[::-1]), factors.scale)


def _without_idle_ranks(factors: Factors, B: Tensor) -> Factors:
    """Leave out the ranks this slice of a fused B does not use: a block-diagonal B comes apart again."""
    used = (B != 0).any(dim=0)
    if not used.any():
        used[0] = True
    return Factors(factors.A[used], B[:, used], factors.scale)


def _to_kohya(factors: Mapping[str, Factors], architecture: Architecture | None) -> dict[str, Tensor]:
    """Original module names; a fused module gets the ranks of all its targets, with a block-diagonal B."""
    if architecture is None:
        raise HywuError("The kohya format has names for FLUX and Qwen-Image only; choose another key format.")
    tensors: dict[str, Tensor] = {}
    for original, parts in dict(architecture.original_of(target) for target in factors).items():
        if missing := [part for part in parts if part not in factors]:
            raise HywuError(
                f"The kohya format stores {', '.join(parts)} as one module, but the adapter lacks "
                f"{missing[0]!r}; choose another key format."
            )
        turns = architecture.turns(original)
        fused = [_turned(factors[part]) if turns else factors[part] for part in parts]
        A = torch.cat([f.A for f in fused])
        key = "lora_unet_" + original.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = A
        tensors[f"{key}.lora_up.weight"] = torch.block_diag(*(f.B for f in fused))
        tensors[f"{key}.alpha"] = torch.tensor(float(A.shape[0]))  # alpha / rank = 1; without it, a KeyError
    return tensors
