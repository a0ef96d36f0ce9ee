"""Parts of a model folder into memory; what is wrong with a folder is found before memory is spent on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import HywuError
from .folders import TRANSFORMER, ModelFolder, read_json, tensor_shapes
from .quantization import quantization_config

_UNUSED = "lm_head.weight"  # of language models: they read here, and say nothing
Parts = Mapping[str, tuple[str, ...]]  # sub-folder -> names of the classes it may have


def check_transformer(
    folder: ModelFolder, class_name: str, device: torch.device, dtype: torch.dtype, quantize: str | None
) -> tuple[nn.Module, dict[str, Any]]:
    """The transformer that a folder describes, on "meta", and what `from_pretrained` is told to quantise it.

    HywuError for another class of diffusers than this, for missing, truncated or foreign weights, and for a
    quantisation that is not possible here. Of the weights only the headers are read.
    """
    import diffusers

    part = folder.part(TRANSFORMER)
    found = folder.class_of(TRANSFORMER)
    if found != class_name:
        raise HywuError(f"The transformer in {part} is a {found}; this backbone needs a {class_name}.")
    model_class = getattr(diffusers, class_name)
    config = read_json(part / "config.json")
    files = folder.check_weights(TRANSFORMER)
    if "quantization_config" in config and quantize is not None:
        raise HywuError(f"{part} is quantised already; leave the quantisation to {quantize} out.")
    with torch.device("meta"):
        expected = attempt(part, lambda: model_class.from_config(config))
    if "quantization_config" not in config:  # a quantised file has other tensors than its config says
        _compare(part, {n: tuple(t.shape) for n, t in expected.state_dict().items()}, tensor_shapes(files))
    return expected, quantization_config(quantize, device, dtype)


def load_transformer(
    folder: ModelFolder, class_name: str, device: torch.device, dtype: torch.dtype, quantize: str | None
) -> nn.Module:
    """The frozen transformer of a folder, in evaluation mode; HywuError first as by `check_transformer`."""
    described, settings = check_transformer(folder, class_name, device, dtype, quantize)
    part, model_class = folder.part(TRANSFORMER), type(described)

    def load() -> nn.Module:
        options = {"torch_dtype": dtype, "local_files_only": True, "use_safetensors": True}
        return model_class.from_pretrained(part, **options, **settings).to(device)

    return attempt(part, load).eval().requires_grad_(False)


def check_parts(folder: ModelFolder, parts: Parts) -> None:
    """HywuError unless each part is there, of one of its classes and, if it has weights, with all of them."""
    for name, allowed in parts.items():
        found = folder.class_of(name)
        if found not in allowed:
            raise HywuError(
                f"The {name} in {folder.path} is a {found}; this backbone needs a {' or '.join(allowed)}."
            )
        if issubclass(_class(found), nn.Module):
            folder.check_weights(name)


def load_part(
    folder: ModelFolder, name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Any:
    """A model (frozen, in evaluation mode), tokenizer or processor; HywuError for one that is damaged."""
    part, part_class = folder.part(name), _class(folder.class_of(name))
    if not issubclass(part_class, nn.Module):
        return attempt(part, lambda: part_class.from_pretrained(part, local_files_only=True))

    def load() -> tuple[nn.Module, Mapping[str, Any]]:
        options = {"torch_dtype": dtype, "local_files_only": True, "use_safetensors": True}
        return part_class.from_pretrained(part, **options, output_loading_info=True)

    model, report = attempt(part, load)
    missing = sorted(key for key in report["missing_keys"] if key != _UNUSED)
    if missing:  # which would stay random
        raise HywuError(f"{part} lacks {len(missing)} of its weights, such as {missing[0]}.")
    return model.to(device).eval().requires_grad_(False)


def _class(name: str) -> type:
    import diffusers
    import transformers

    library = diffusers if hasattr(diffusers, name) else transformers
    return getattr(library, name)


def attempt(part: Path, load: Callable[[], Any]) -> Any:
    """What `load` reads from the folder of a part; HywuError for whatever goes wrong there."""
    try:
        return load()
    except HywuError:
        raise
    except Exception as error:  # many libraries, each with its own; tokenizers raises plain ones
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HywuError(f"{part} cannot be loaded: {reason}") from error


def _compare(
    part: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    if missing := sorted(expected.keys() - found.keys()):
        raise HywuError(
            f"{part} lacks {len(missing)} of the {len(expected)} weights that its config.json describes, "
            f"such as {missing[0]}."
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise HywuError(
                f"{name} in {part} has the shape {found[name]}, but by its config.json it has {shape}."
            )
