"""Where to compute: a device by its name, or a sentence when it is not there."""

from __future__ import annotations

import os

import torch

from .errors import HywuError


def resolve_device(name: str) -> torch.device:
    """The device of a name, "auto" being the best there is; HywuError when it cannot compute here."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        torch.ones(1, device=_own(name)).item()  # "meta" has tensors, but no numbers
        return torch.device(name)
    except (RuntimeError, AssertionError, ImportError) as error:  # some devices' torch is a package apart
        reason = str(error).partition("\n")[0]
        raise HywuError(f"The device '{name}' is not available here: {reason}") from error


def without_cudnn_attention() -> None:
    """cuDNN's reads out of bounds in backward (torch 2.11, H100, bf16, 544 tokens); others do not."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def use_tf32(allowed: bool) -> None:
    """Whether products of float32 tensors may be computed with 10 bits of mantissa, as recent GPUs can."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def _own(name: str) -> str:
    """Of "cuda", the GPU that this process of torchrun's will have: what it tried would keep some memory."""
    place = int(os.environ.get("LOCAL_RANK", "0"))
    return f"cuda:{place}" if name == "cuda" and place < torch.cuda.device_count() else name
