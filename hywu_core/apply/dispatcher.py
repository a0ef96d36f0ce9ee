"""The forward of a module while adapters are attached: shadowed in the instance, and given back exactly.

A target's update lives in one `SidePath`. Sites say where it acts: a `Dispatcher` that shadows a module's
forward, and what that dispatcher calls. Attachments stack; the last one to go restores the instance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .linear import low_rank_update


class SidePath:
    """One target's update, `scale * B A` for each of P adapters, and which of them are at work.

    turn: inside a module that runs once for each adapter (see `experts.py`), the one it runs for.
    batch: rows of the activation where they are known and about to be flattened into tokens.
    """

    A: Tensor
    B: Tensor
    scale: float
    turn: int | None = None
    batch: int | None = None
    _unbound: tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]] | None = None

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        """y (M, ..., d_out) with the update for x (M, ..., d_in) added."""
        if self.scale == 0:
            return y
        # y is the module's own fresh output: nobody else holds it, and without autograd it may be reused.
        A, B = self.pair()
        return low_rank_update(y, x, A, B, self.scale, inplace=not torch.is_grad_enabled())

    @property
    def adapters(self) -> int:
        """How many are at work: all P, or the one whose turn it is."""
        return len(self.A) if self.turn is None else 1

    def pair(self, expert: int | None = None) -> tuple[Tensor, Tensor]:
        """A and B of the adapters at work, of one expert where there are several."""
        A, B = (self.A, self.B) if expert is None else self._of_expert(expert)
        if self.turn is None:
            return A, B
        return A[self.turn : self.turn + 1], B[self.turn : self.turn + 1]

    def _of_expert(self, expert: int) -> tuple[Tensor, Tensor]:
        if not (torch.is_grad_enabled() and (self.A.requires_grad or self.B.requires_grad)):
            return self.A[:, expert], self.B[:, expert]
        # The gradient of a selection is as large as what is selected from, once for each expert; unbind's is
        # put together once for all.
        if self._unbound is None or self._unbound[0] is not self.A:
            self._unbound = self.A, self.A.unbind(1), self.B.unbind(1)
        return self._unbound[1][expert], self._unbound[2][expert]


class Dispatcher:
    """The forward of a module with attachments: its own forward, then the paths in order."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own: Callable[..., Any] = module.forward
        self.overridden = "forward" in module.__dict__  # some other tool shadows the class's forward already
        self.paths: tuple[Any, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module."""
        y = self.own(*args, **kwargs)
        x = first_argument(args, kwargs)
        for path in self.paths:
            y = path(y, x)
        return y


@dataclass(eq=False)
class Site:
    """One place where a path acts: a module, the kind of dispatcher that it gets, and what that one calls."""

    module: nn.Module
    kind: type[Dispatcher]
    path: Any
    dispatcher: Dispatcher | None = None

    def install(self) -> None:
        """Shadow the module's forward, unless it is already."""
        dispatcher = self.module.__dict__.get("forward")
        if type(dispatcher) is not self.kind:
            dispatcher = self.kind(self.module)
            self.module.forward = dispatcher
        dispatcher.paths += (self.path,)
        self.dispatcher = dispatcher

    def remove(self) -> None:
        """Take the path off, and the shadow if it was the last."""
        dispatcher, self.dispatcher = self.dispatcher, None
        if dispatcher is None:
            return
        dispatcher.paths = tuple(other for other in dispatcher.paths if other is not self.path)
        # If another tool has put its own forward over ours since, ours stays below it, without effect.
        if not dispatcher.paths and self.module.__dict__.get("forward") is dispatcher:
            if dispatcher.overridden:
                self.module.forward = dispatcher.own
            else:
                del self.module.forward


def first_argument(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What a module was given first, by place or by name."""
    return args[0] if args else next(iter(kwargs.values()))
