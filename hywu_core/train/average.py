"""An exponential moving average of the trained weights (EMA), kept in float32 beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .sharding import reshard


class Average:
    """The average of the parameters that are trained; each process keeps that of its own shards."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self._module = decay, module
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.weights = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps. Early ones count less: they are far from where it ends."""
        decay = min(self.decay, (1 + step) / (10 + step))
        now = [local(p).float() for p in self._parameters.values()]
        get_ema_multi_avg_fn(decay)([local(w) for w in self.weights.values()], now, step)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average in the place of the weights, for good."""
        for name, parameter in self._parameters.items():
            local(parameter).copy_(local(self.weights[name]))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Put the average in the place of the weights, which come back afterwards; they wait on the CPU."""
        weights = {name: local(p).to("cpu", copy=True) for name, p in self._parameters.items()}
        reshard(self._module)
        self.apply()
        try:
            yield
        finally:
            reshard(self._module)
            for name, parameter in self._parameters.items():
                local(parameter).copy_(weights[name])


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a distributed tensor, or the tensor itself; shares memory."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
