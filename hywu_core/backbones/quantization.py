"""Frozen transformers in fewer bits, through diffusers: weights only, the arithmetic stays in the dtype.

int8 and fp8 by torchao (8 bits a weight), nf4 by bitsandbytes (4.1 bits). Adapters are applied beside the
quantised linears, and gradients flow through them to the generator.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from ..errors import HywuError

_PACKAGES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}
_DEVICES = {"torchao": ("cuda", "xpu", "cpu"), "bitsandbytes": ("cuda", "xpu")}  # as diffusers has them
QUANTIZATIONS = tuple(_PACKAGES)
_WHOLE = ("x_embedder", "context_embedder", "img_in", "txt_in", "time_text_embed", "time_embed", "norm_out")


def quantization_config(kind: str | None, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantise the blocks' linears; none for kind None.

    HywuError for an unknown kind, one whose package is not installed, and one the device cannot compute.
    """
    if kind is None:
        return {}
    if kind not in QUANTIZATIONS:
        raise HywuError(f"There is no quantisation '{kind}'; there are {', '.join(QUANTIZATIONS)}.")
    package = _PACKAGES[kind]
    if find_spec(package) is None:
        raise HywuError(f"Quantisation to {kind} needs the package {package}: pip install {package}")
    possible = _DEVICES[package]
    if device.type not in possible:
        raise HywuError(f"Quantisation to {kind} is not possible on {device}, only on {', '.join(possible)}.")
    import diffusers

    whole = list(_WHOLE)
    if kind == "nf4":
        config = diffusers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=whole,
        )
    else:
        from torchao import quantization as torchao

        weights = torchao.Int8WeightOnlyConfig if kind == "int8" else torchao.Float8WeightOnlyConfig
        config = diffusers.TorchAoConfig(weights(), modules_to_not_convert=whole)
    return {"quantization_config": config}
