"""One module's factors, as a file holds them: plain 2-D matrices (3-D for experts) beside one scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import HywuError
from .adapter import Adapter


@dataclass(frozen=True, eq=False)
class Factors:
    """One module's factors: A ([E,] r, d_in), B ([E,] d_out, r); the update is scale * B @ A."""

    A: Tensor
    B: Tensor
    scale: float = 1.0


def baked_factors(
    adapter: Adapter, strength: float | None, dtype: torch.dtype | None = None
) -> dict[str, Factors]:
    """The only adapter of a batch with scale * strength in B, on the CPU, contiguous and sharing no memory.

    strength: None leaves B as it is, for scale and strength to be kept beside it.

    Raises `HywuError` for values that are not finite, and for those that this strength or dtype makes so.
    """
    adapter = adapter.detach().check()
    dtype = dtype or adapter.dtype
    scale = 1.0 if strength is None else adapter.scale * strength
    exported = {}
    for name, (A, B) in adapter.items():
        B = B.to(torch.promote_types(B.dtype, torch.float32)) * scale
        exported[name] = Factors(_compact(A[0], dtype), _compact(B[0], dtype))
    if not all(bool(f.A.isfinite().all()) for f in exported.values()):
        raise _overflow(None, dtype)
    if not all(bool(f.B.isfinite().all()) for f in exported.values()):
        raise _overflow(strength, dtype)
    return exported


def _overflow(strength: float | None, dtype: torch.dtype) -> HywuError:
    """Of numbers that were finite; where None is no strength that had a part in it."""
    ways = ["choose bfloat16 or float32"] if dtype == torch.float16 else []  # it ends at 65504
    ways += [] if strength is None else ["lower the strength"]
    return HywuError(
        f"{'The' if strength is None else f'At strength {strength:g} the'} LoRA has values beyond what "
        f"{str(dtype).removeprefix('torch.')} can hold; {', or '.join(ways) or 'do not use it'}."
    )


def _compact(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to("cpu", dtype, copy=True).contiguous()
