"""How much memory tensors take while something runs, counted and not guessed from the process."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors of their own memory that were alive at once inside the block."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self._count(tensor)
        return out

    def _count(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        self.counts[key] = self.counts.get(key, 0) + 1
        if self.counts[key] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)
        weakref.finalize(tensor, self._forget, key, size)

    def _forget(self, key, size):
        self.counts[key] -= 1
        if self.counts[key] == 0:
            self.now -= size
