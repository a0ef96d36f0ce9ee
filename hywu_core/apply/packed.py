"""An adapter laid out for the modules of one runtime: all its numbers in one tensor.

One tensor is loaded, offloaded and freed as one, with one copy; the matrices are views of it. Scale and
strength are in B already, so that nothing is multiplied while sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from .fused import Up

_ALIGNMENT = 256  # bytes; compiled kernels copy inputs that start elsewhere


@dataclass(frozen=True, eq=False)
class Part:
    """One target's update of a module: A (P, r, d_in) and B (P, d, r), unscaled.

    factor: on B.  first: of the module's output rows, the first of the d it adds to.
    whole: whether these are all the rows.
    """

    A: Tensor
    B: Tensor
    factor: float = 1.0
    first: int = 0
    whole: bool = True


# The two halves of a module's update: A transposed, and a B for each target (see `fused`).
Layer = tuple[Tensor, tuple[Up, ...]]


@dataclass(frozen=True)
class _Place:
    """Where a matrix begins in the storage, and its shape."""

    start: int
    shape: tuple[int, ...]

    def of(self, storage: Tensor) -> Tensor:
        """The matrix, transposed for products from the left."""
        view = storage[self.start : self.start + prod(self.shape)].view(self.shape)
        return (view[0] if self.shape[0] == 1 else view).transpose(-1, -2)


@dataclass(frozen=True)
class _Layout:
    A: _Place
    ups: tuple[tuple[_Place, tuple[int, int] | None, tuple[int, int] | None], ...]


class PackedAdapter(nn.Module):
    """A batch of P adapters for some modules of a runtime, by the modules' names."""

    def __init__(self, modules: Mapping[str, Sequence[Part]], dtype: torch.dtype) -> None:
        super().__init__()
        self._end = 0
        self._align = max(1, _ALIGNMENT // dtype.itemsize)
        self._layouts = {name: self._lay_out(parts) for name, parts in modules.items()}
        first = next(iter(modules.values()))[0].A
        self.batch = first.shape[0]
        storage = torch.zeros(self._end, dtype=dtype, device=first.device)
        for name, parts in modules.items():
            self._fill(storage, self._layouts[name], parts)
        self.storage = nn.Parameter(storage, requires_grad=False)
        self._views: tuple[int, dict[str, Layer]] | None = None

    def _lay_out(self, parts: Sequence[Part]) -> _Layout:
        adapters, _, d_in = parts[0].A.shape
        ranks = [part.A.shape[1] for part in parts]
        A = self._reserve((adapters, sum(ranks), d_in))
        ups, rank = [], 0
        for part, r in zip(parts, ranks, strict=True):
            rows = None if part.whole else (part.first, part.first + part.B.shape[1])
            own = None if len(parts) == 1 else (rank, rank + r)
            ups.append((self._reserve(tuple(part.B.shape)), own, rows))
            rank += r
        return _Layout(A, tuple(ups))

    def _reserve(self, shape: tuple[int, ...]) -> _Place:
        place = _Place(self._end, shape)
        self._end += -(-prod(shape) // self._align) * self._align
        return place

    @staticmethod
    def _fill(storage: Tensor, layout: _Layout, parts: Sequence[Part]) -> None:
        rank = 0
        whole_A = storage[layout.A.start :][: prod(layout.A.shape)].view(layout.A.shape)
        for part, (place, _, _) in zip(parts, layout.ups, strict=True):
            r = part.A.shape[1]
            whole_A[:, rank : rank + r].copy_(part.A.detach())
            rank += r
            B = storage[place.start :][: prod(place.shape)].view(place.shape)
            precise = torch.promote_types(part.B.dtype, torch.float32)
            B.copy_(part.B.detach() if part.factor == 1 else part.B.detach().to(precise) * part.factor)

    def is_finite(self) -> bool:
        """Whether every number is, scale and strength included."""
        # A sum is one pass and makes nothing; only where it overflows does each number have to be looked at.
        total = self.storage.sum(dtype=torch.promote_types(self.storage.dtype, torch.float32))
        return bool(torch.isfinite(total)) or bool(torch.isfinite(self.storage).all())

    def layers(self, device: torch.device) -> dict[str, Layer]:
        """The matrices by module, on a device.

        Views of the storage where it lies there; they are remembered until `forget`, or until the storage was
        moved. From another device the storage is copied for this one call, and so it is for a call with
        gradients where ComfyUI made or moved it in inference mode: autograd keeps no such tensor.
        """
        storage = self.storage.detach()
        if storage.is_inference() and not torch.is_inference_mode_enabled():
            return self._layers_of(storage.to(device, copy=True))
        if storage.device != device:
            return self._layers_of(storage.to(device, non_blocking=True))
        if self._views is None or self._views[0] != storage.data_ptr():
            self._views = (storage.data_ptr(), self._layers_of(storage))
        return self._views[1]

    def _layers_of(self, storage: Tensor) -> dict[str, Layer]:
        return {
            name: (layout.A.of(storage), tuple(Up(B.of(storage), *where) for B, *where in layout.ups))
            for name, layout in self._layouts.items()
        }

    def copy(self) -> PackedAdapter:
        """The same adapters in main memory of their own."""
        twin = PackedAdapter.__new__(PackedAdapter)
        nn.Module.__init__(twin)
        twin._layouts, twin._end, twin._align, twin.batch = self._layouts, self._end, self._align, self.batch
        twin.storage = nn.Parameter(self.storage.detach().to("cpu", copy=True), requires_grad=False)
        twin._views = None
        return twin

    def forget(self) -> None:
        """Let go of the views, which would keep the memory of a storage that is moved away."""
        self._views = None
