"""Whose rows are whose among a mixture's experts, where the batch is about to be lost in routing."""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm
from typing import Any

import torch
from torch import Tensor

from .dispatcher import Dispatcher, SidePath, first_argument
from .linear import require_shares


class Turns(Dispatcher):
    """A module that runs once for each adapter, on that adapter's part of the batch."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it; with one adapter for all rows it runs as ever."""
        if all(path.adapters == 1 or not path.scale for path in self.paths):
            return self.own(*args, **kwargs)
        paths = [path for path in self._inside() if path.turn is None and path.scale]
        n_turns = lcm(*(len(path.A) for path in paths))
        rows = len(first_argument(args, kwargs))
        for path in paths:
            require_shares(len(path.A), path.batch or rows)
        require_shares(n_turns, rows)
        outputs = []
        try:
            for turn in range(n_turns):
                for path in paths:
                    path.turn = turn * len(path.A) // n_turns
                part = slice(turn * rows // n_turns, (turn + 1) * rows // n_turns)
                cut = [_part(value, rows, part) for value in args]
                outputs.append(self.own(*cut, **{k: _part(v, rows, part) for k, v in kwargs.items()}))
        finally:
            for path in paths:
                path.turn = None
        return _joined(outputs)

    def _inside(self) -> Iterator[SidePath]:
        """Every path under this module: a neighbour of the experts has its adapters in turn as well."""
        found: dict[int, SidePath] = {}
        for module in self.module.modules():
            dispatcher = module.__dict__.get("forward")
            for path in dispatcher.paths if isinstance(dispatcher, Dispatcher) else ():
                path = getattr(path, "path", path)  # behind what an expert's linear or tensors call
                found[id(path)] = path
        return iter(found.values())


class Witness(Dispatcher):
    """A mixture's block, which still sees the batch that its experts are given flattened."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, and let the paths know the batch meanwhile."""
        x = first_argument(args, kwargs)
        batch = len(x) if isinstance(x, Tensor) and x.dim() > 2 else None
        try:
            for path in self.paths:
                path.batch = batch
            return self.own(*args, **kwargs)
        finally:
            for path in self.paths:
                path.batch = None


def _part(value: Any, rows: int, part: slice) -> Any:
    return value[part] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value


def _joined(outputs: list[Any]) -> Any:
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(outputs)
    if isinstance(first, tuple):
        return tuple(_joined(list(values)) for values in zip(*outputs, strict=True))
    return first
