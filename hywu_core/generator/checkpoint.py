"""One generator, one self-describing `.safetensors` file.

The header's metadata carries, each as JSON: `hywu.config`, `hywu.spec`, `hywu.layout`, `hywu.encoder` (the
condition encoder it was trained with), `hywu.backbone` (what it adapts) and `hywu.provenance`. The tensors
are the generator's state dict.

A quantised generator (see `quantize.py`) is a file of format 2. It adds `hywu.quantization`, {"kind": "int8"}
or "fp8"; the `weight` of every linear of the blocks is stored as I8 or F8_E4M3 codes, and beside it lies
`weight_scale`, one F32 for each output: weight = codes * scale. 8.2 GB for the released 8.11B.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import HywuError
from ..lora import LoraSpec
from ..storage import open_safetensors, write_safetensors
from ..tokens import TokenLayout
from .checks import require_finite, require_same_tensors
from .config import GeneratorConfig
from .model import ParameterGenerator
from .quantize import Weights, quantization_of, quantize_generator, require_kind, stored_exactly
from .release import buildable, load_release

FORMAT_VERSION = 1
QUANTIZED_VERSION = 2  # of the files that format 1's readers cannot read; all others stay readable to them
_VERSION_KEY = "hywu.generator_version"
_KIND_KEY = "hywu.quantization"
_FIELDS = ("config", "spec", "layout", "encoder", "backbone", "provenance")


def save_generator(
    path: str | os.PathLike[str],
    generator: ParameterGenerator,
    encoder: Mapping[str, Any] | None = None,
    backbone: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a generator to a file that appears whole or not at all; return its path.

    encoder, backbone: at least `kind` and `id`, and what else tells a matching one (dims, sha256); JSON-able.
        They and `provenance` default to what the generator carries.
    dtype: of the tensors in the file, by default the generator's own; codes and scales of a quantised
        generator stay as they are.

    Raises HywuError for a weight that is not finite (also after the cast), for information that JSON cannot
    hold, for a missing folder and for a full disk.
    """
    fields = {
        "config": generator.config.to_dict(),
        "spec": generator.spec.to_dict(),
        "layout": generator.layout.to_dict(),
        "encoder": dict(generator.encoder_info if encoder is None else encoder),
        "backbone": dict(generator.backbone_info if backbone is None else backbone),
        "provenance": dict(generator.provenance if provenance is None else provenance),
    }
    try:
        metadata = {f"hywu.{name}": json.dumps(value, allow_nan=False) for name, value in fields.items()}
    except (TypeError, ValueError) as error:
        raise HywuError(f"Cannot write {path}: its description is not plain data, {error}.") from error
    kind = quantization_of(generator)
    if kind is not None:
        metadata[_KIND_KEY] = json.dumps({"kind": kind})
    exact = stored_exactly(generator)
    tensors = {
        name: t.detach().to("cpu", None if name in exact else dtype).contiguous()
        for name, t in generator.state_dict().items()
    }
    for name, tensor in tensors.items():
        require_finite(tensor, name, f"Did not write {path}: as {tensor.dtype},")
    version = FORMAT_VERSION if kind is None else QUANTIZED_VERSION
    write_safetensors(path, tensors, {"format": "pt", _VERSION_KEY: str(version)} | metadata)
    return Path(path)


def load_generator(
    path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
) -> ParameterGenerator:
    """Read a generator: a file as `save_generator` wrote it, or a folder of the release (see `release.py`).

    device: where the weights go, by default the CPU.  dtype: what they compute in, by default as they are
        stored, but float32 for what a file keeps in float16, which is for keeping.
    quantize: "int8" or "fp8" keeps the blocks' linears in one byte a weight, see `quantize.py`; such a
        generator computes, and cannot be trained. Every tensor goes from the file straight to its place, so
        there is never a second copy of the weights, and never all of them in more than a byte.

    Raises HywuError, before memory is spent where it can, if the file is missing, truncated, foreign or of a
    newer format, if its tensors are not those its config describes, if it is quantised in another way than
    asked for, and if a value is not finite.
    """
    path = Path(path)
    if quantize is not None:
        require_kind(quantize)
    if path.is_dir():
        return load_release(path, device, dtype, quantize)
    with open_safetensors(path) as file:
        fields = _read_fields(path, file.metadata() or {})
        generator = _build(path, fields)
        kind = _read_kind(path, file.metadata())
        if kind is not None:
            if quantize not in (None, kind):
                raise HywuError(
                    f"{path} is quantised to {kind} already; to have it in {quantize}, load the generator "
                    "that it was made from."
                )
            quantize_generator(generator, kind)
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        require_same_tensors(path, found, {name: t.shape for name, t in generator.state_dict().items()})
        stored_as = file.get_slice("condition_in.weight").get_dtype()
        dtype = dtype or (torch.bfloat16 if stored_as == "BF16" else torch.float32)
        if kind is not None:
            for name, wanted in stored_exactly(generator).items():
                if (stored := file.get_slice(name).get_dtype()) != wanted:
                    raise HywuError(
                        f"{path} contradicts its header: {name} is stored as {stored}, not {wanted}."
                    )
        elif quantize is not None:
            quantize_generator(generator, quantize)
        weights = Weights(generator, device, dtype)
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            # Copied even where nothing changes: the file's own memory map would change or break with it.
            require_finite(weights.put(name, file.get_tensor(name)), name, f"{path} is damaged:")
    generator.load_state_dict(weights.tensors, assign=True)
    generator.encoder_info = fields["encoder"]
    generator.backbone_info = fields["backbone"]
    generator.provenance = fields["provenance"]
    return generator


def _read_fields(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    version = metadata.get(_VERSION_KEY)
    if version is None:
        raise HywuError(
            f"{path} is a safetensors file, but not a HY-WU generator: its header does not say so."
        )
    if version not in (str(FORMAT_VERSION), str(QUANTIZED_VERSION)):
        raise HywuError(
            f"{path} is a HY-WU generator of format {version}, but this version reads {FORMAT_VERSION} and "
            f"{QUANTIZED_VERSION}; please update."
        )
    fields = {}
    for name in _FIELDS:
        try:
            fields[name] = json.loads(metadata[f"hywu.{name}"])
        except (KeyError, ValueError, RecursionError) as error:
            raise HywuError(
                f"{path} has a damaged header: 'hywu.{name}' is missing or is not JSON."
            ) from error
        if not isinstance(fields[name], dict):
            raise HywuError(f"{path} has a damaged header: 'hywu.{name}' is not a JSON object.")
    return fields


def _read_kind(path: Path, metadata: Mapping[str, str]) -> str | None:
    """What the file's codes are, or None for a file in full precision."""
    if metadata[_VERSION_KEY] == str(FORMAT_VERSION):
        return None
    try:
        kind = json.loads(metadata[_KIND_KEY])["kind"]
        require_kind(kind)
    except (KeyError, ValueError, TypeError) as error:
        raise HywuError(f"{path} has a damaged header: '{_KIND_KEY}' is missing or unknown.") from error
    return kind


def _build(path: Path, fields: Mapping[str, dict[str, Any]]) -> ParameterGenerator:
    """The generator of a header, without memory for its weights."""
    with buildable(path), torch.device("meta"):
        config = GeneratorConfig.from_dict(fields["config"])
        layout = TokenLayout(**fields["layout"])
        return ParameterGenerator(config, LoraSpec.from_dict(fields["spec"]), layout)
