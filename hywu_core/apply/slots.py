"""Side paths in the place of modules' forwards for the length of a `with` block, without recompilation.

torch.compile remembers which object a module's `forward` was and of what shape the tensors in it were, not
which tensors. So every module has one slot for each side path that is stacked on it, as long as the module
lives, and a slot is filled anew for each block: another adapter of the same shapes runs in the graphs of the
first one.

Outside of a block nothing of it can be reached from a module, and no slot holds a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from .fused import Convolution, Update, add_updates


class _Slot:
    """A module's forward, followed by its updates."""

    def __init__(self) -> None:
        self.forward: Callable[..., Tensor] | None = None
        self.updates: Sequence[Update] = ()
        self.rows = 0
        self.convolution: Convolution | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        y = self.forward(*args, **kwargs)
        x = args[0] if args else next(iter(kwargs.values()))
        return add_updates(y, x, self.updates, self.rows, self.convolution)

    def clear(self) -> None:
        """Hold nothing: the forward would keep the module alive, the updates the adapter."""
        self.forward, self.updates = None, ()


_slots: WeakKeyDictionary[nn.Module, list[_Slot]] = WeakKeyDictionary()

Entry = tuple[nn.Module, Sequence[Update], Convolution | None]


@contextmanager
def side_paths(entries: Iterable[Entry], rows: int) -> Iterator[None]:
    """Add the updates to the outputs of their modules inside of the block; rows: of the call (see `rows`).

    Blocks may be nested, over the same modules too; afterwards every module is what it was, also after an
    exception.
    """
    filled: list[tuple[dict[str, Any], Callable[..., Tensor] | None, _Slot]] = []
    try:
        for module, updates, convolution in entries:
            attributes = vars(module)
            slot = _free_slot(module)
            shadowed = attributes.get("forward")
            slot.forward = module.forward if shadowed is None else shadowed
            slot.updates, slot.rows, slot.convolution = updates, rows, convolution
            filled.append((attributes, shadowed, slot))
            attributes["forward"] = slot
        yield
    finally:
        for attributes, shadowed, slot in reversed(filled):
            if shadowed is None:
                attributes.pop("forward", None)
            else:
                attributes["forward"] = shadowed
            slot.clear()


def _free_slot(module: nn.Module) -> _Slot:
    slots = _slots.setdefault(module, [])
    for slot in slots:
        if slot.forward is None:
            return slot
    slots.append(_Slot())
    return slots[-1]
