"""The norm of gradients of which some are sharded over processes and some are not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .average import local


def clip(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients, in place, to a norm of at most `limit`; returns the norm before, a scalar.

    The same number on every process, which all must call it.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    sharded = [g for g in gradients if hasattr(g, "full_tensor")]
    whole = [g for g in gradients if not hasattr(g, "full_tensor")]
    norms = [nn.utils.get_total_norm(each) for each in (sharded, whole) if each]
    norms = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    total = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    factor = torch.clamp(limit / (total + 1e-6), max=1.0)
    torch._foreach_mul_([local(g) for g in gradients], factor)
    return total
