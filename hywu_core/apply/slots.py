"""Side paths in the place of modules' forwards for the length of a `with` block, without recompilation.

torch.compile remembers what a module's `forward` was and of what shape the tensors in it were, not which
tensors. So every module gets the same function, bound to it, and the tensors as an attribute: another adapter
of the same shapes runs in the graphs of the first one, and like blocks of a model go on sharing one graph.

Outside of a block a module has neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import Tensor, nn

from .fused import Convolution, Update, add_updates

Entry = tuple[nn.Module, Sequence[Update], Convolution | None]

# Attributes of a module inside of a block: its updates, M and convolution, and a forward that was in the
# instance before, some other tool's, if there was one.
_WORK, _BELOW = "_hywu_work", "_hywu_below"


def _followed(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """A module's own forward, followed by its updates."""
    y = type(self).forward(self, *args, **kwargs)
    return add_updates(y, args[0] if args else next(iter(kwargs.values())), *self._hywu_work)


def _followed_over(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """Another tool's forward, followed by the updates."""
    y = self._hywu_below(*args, **kwargs)
    return add_updates(y, args[0] if args else next(iter(kwargs.values())), *self._hywu_work)


@contextmanager
def side_paths(entries: Iterable[Entry], rows: int) -> Iterator[None]:
    """Add the updates to the outputs of their modules inside of the block; rows: of the call (see `rows`).

    Blocks of the same rows may be nested, over the same modules too; afterwards every module is what it was,
    also after an exception.
    """
    before: list[tuple[dict[str, Any], Any]] = []
    try:
        for module, updates, convolution in entries:
            attributes = vars(module)
            work = attributes.get(_WORK)
            before.append((attributes, work))
            if work is not None:
                attributes[_WORK] = ((*work[0], *updates), rows, convolution)
                continue
            attributes[_WORK] = (tuple(updates), rows, convolution)
            if (below := attributes.get("forward")) is not None:
                attributes[_BELOW] = below
            attributes["forward"] = MethodType(_followed if below is None else _followed_over, module)
        yield
    finally:
        for attributes, work in reversed(before):
            if work is not None:
                attributes[_WORK] = work
                continue
            attributes.pop(_WORK, None)
            if _BELOW in attributes:
                attributes["forward"] = attributes.pop(_BELOW)
            else:
                attributes.pop("forward", None)
