"""AdamW for the trained weights: kept in float32, or in bfloat16 with stochastic rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import nn

from ..cli import require
from .config import TrainConfig

_BETAS = (0.9, 0.99)
_PER_STEP = 2**32  # seeds of different runs stay apart for this many steps


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Decay matrices only: norms, biases and embeddings of one row have no scale to bound.

    Sharded parameters and whole ones are in groups of their own, for no operation takes both at once.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": params, "weight_decay": decay}
        for matrices, decay in ((True, weight_decay), (False, 0.0))
        for sharded in (False, True)
        if (params := [p for p in trained if (p.ndim >= 2) == matrices and _sharded(p) == sharded])
    ]


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over what is trained of a module, whose weights are in the precision they are kept in."""
    groups = parameter_groups(module, config.weight_decay)
    if config.weights == "bf16":
        require("torchao")
        from torchao.optim import _AdamW

        return _AdamW(groups, lr=config.lr, betas=_BETAS, bf16_stochastic_round=True)
    fused = next(module.parameters()).device.type == "cuda"
    return torch.optim.AdamW(groups, lr=config.lr, betas=_BETAS, fused=fused)


def update(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """One optimiser step, the same whenever it is taken from the same state: `step` seeds its rounding."""
    rate = config.learning_rate(step)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    if config.weights != "bf16":
        optimizer.step()
        # A fused step writes without counting, and what was computed from the weights would seem up to date.
        torch.autograd.graph.increment_version(list(trained(optimizer)))
        return
    torch.manual_seed((config.seed * _PER_STEP + step) % 2**63)
    # torchao compiles the update of a parameter; on a CPU that takes longer than it saves.
    on_cpu = next(trained(optimizer)).device.type == "cpu"
    with torch.compiler.set_stance("force_eager") if on_cpu else nullcontext():
        optimizer.step()


def trained(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    """The optimiser's parameters, in its order."""
    for group in optimizer.param_groups:
        yield from group["params"]


def _sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "full_tensor")
