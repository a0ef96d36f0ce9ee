"""A stand-in for Apple's GPU: tensors that say they are on it, and what torch cannot do with them there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class PretendMps(TorchFunctionMode):
    """Inside of it every tensor is on "mps" that was not moved to the CPU or made of those that were."""

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function == Tensor.device.__get__:
            return torch.device("cpu" if _moved(args[0]) else "mps")
        if function in (Tensor.cpu, Tensor.to):
            return _move(function, args[0], args[1:], kwargs)
        if function is F.adaptive_avg_pool2d and not _moved(args[0]):
            _check_pooling(args[0].shape[-2:], args[1])
        result = function(*args, **kwargs)
        if isinstance(result, Tensor) and any(_moved(x) for x in args):
            result.moved = True
        return result


def _check_pooling(sides: Sequence[int], cells: int) -> None:
    if any(side % cells for side in sides):
        raise NotImplementedError("Adaptive pool MPS: input sizes must be divisible by output sizes.")


def _move(function: Callable, tensor: Tensor, args: tuple, kwargs: dict) -> Tensor:
    wanted = [*args, *kwargs.values()]
    devices = [str(x) for x in wanted if isinstance(x, (str, torch.device))]
    if torch.float64 in wanted and not _moved(tensor):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype.")
    real = {name: _on_cpu(x) for name, x in kwargs.items()}
    result = function(tensor, *map(_on_cpu, args), **real).view_as(tensor)
    result.moved = function is Tensor.cpu or "cpu" in devices or (_moved(tensor) and not devices)
    return result


def _on_cpu(argument: Any) -> Any:
    return torch.device("cpu") if isinstance(argument, (str, torch.device)) else argument


def _moved(x: Any) -> bool:
    return getattr(x, "moved", False)
