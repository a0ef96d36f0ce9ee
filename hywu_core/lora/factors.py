"""One module's factors, as a file holds them: plain 2-D matrices (3-D for experts) beside one scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .adapter import Adapter


@dataclass(frozen=True, eq=False)
class Factors:
    """One module's factors: A ([E,] r, d_in), B ([E,] d_out, r); the update is scale * B @ A."""

    A: Tensor
    B: Tensor
    scale: float = 1.0


def baked_factors(adapter: Adapter, scale: float, dtype: torch.dtype | None = None) -> dict[str, Factors]:
    """The only adapter of a batch with `scale` in B, on the CPU, contiguous and sharing no memory.

    Raises `HywuError` for values that are not finite, before or after the cast.
    """
    adapter = adapter.detach().check()
    dtype = dtype or adapter.dtype
    exported = {}
    for name, (A, B) in adapter.items():
        B = B.to(torch.promote_types(B.dtype, torch.float32)) * scale
        exported[name] = Factors(_compact(A[0], dtype), _compact(B[0], dtype))
    # A cast can overflow (float16 ends at 65504), and so can the strength.
    Adapter({name: (f.A[None], f.B[None]) for name, f in exported.items()}).check()
    return exported


def _compact(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to("cpu", dtype, copy=True).contiguous()
