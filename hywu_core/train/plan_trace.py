"""A rehearsal: a step's own code run on tensors that have shapes but no numbers, its work and memory counted.

Inside torch's `FakeTensorMode` an 80B model takes no memory, and every operation still happens, autograd's
included. So nothing here knows what a block looks like: what autograd keeps, what a recomputation repeats and
what a backward pass needs at its worst moment are read off the code that will run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


@dataclass(frozen=True)
class Trace:
    """What one part of a step costs.

    forward, backward: FLOP, a multiplication and an addition counted as two; a recomputation is in backward.
    kept: bytes alive between the two, results included, weights and their gradients not.
    working: bytes beyond `kept` at the worst moment of either.
    """

    forward: int
    backward: int
    kept: int
    working: int

    def grown(self, larger: Mapping[Any, Trace], more: Mapping[Any, int]) -> Trace:
        """With `more[kind]` more blocks of each kind, where `larger[kind]` has one more: blocks are alike."""

        def count(field: str) -> int:
            here = getattr(self, field)
            return here + sum(n * (getattr(larger[kind], field) - here) for kind, n in more.items())

        return Trace(*(count(each.name) for each in fields(self)))


class Ledger(TorchDispatchMode):
    """Counts, inside the block, FLOP and the bytes of tensors that came into being and are still there.

    known: tensors that were there before.

    Of torch's own `FlopCounterMode` only the formulas are used: it holds on to what modules return, and so
    keeps recomputed activations alive.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.flop = self.peak = 0
        self._upper = 0  # of the bytes alive: looking which tensors are gone takes time
        self._sizes: dict[int, int] = {}
        refs = [StorageWeakRef(tensor.untyped_storage()) for tensor in known]
        self._refs = {ref.cdata: ref for ref in refs}

    def now(self) -> int:
        """Bytes alive at this moment."""
        for key in [key for key in self._sizes if self._refs[key].expired()]:
            del self._sizes[key], self._refs[key]
        self._upper = sum(self._sizes.values())
        return self._upper

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and look at what it made."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (formula := FORMULAS.get(func._overloadpacket)) is not None:
            self.flop += formula(*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        if self._upper > self.peak:
            self.peak = max(self.peak, self.now())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        ref = StorageWeakRef(storage)
        old = self._refs.get(ref.cdata)
        if old is None or old.expired():
            self._refs[ref.cdata] = ref
            self._sizes[ref.cdata] = storage.nbytes()
            self._upper += storage.nbytes()


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, out_val: Any = None, **__: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _attention_back(out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(out.shape, q.shape, k.shape, v.shape)


# torch's formulas lack the attention of CPUs, and with it that of tensors without numbers.
FORMULAS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
}


def trace(
    run: Callable[[], Sequence[Tensor]], known: Sequence[Tensor] = (), trained: nn.Module | None = None
) -> Trace:
    """The cost of `run` and of the backward pass from what it returns.

    known: weights and inputs, which are not counted.  trained: whose gradients are not counted either.
    """
    hooks = [
        parameter.register_post_accumulate_grad_hook(_drop)
        for parameter in (trained.parameters() if trained is not None else ())
        if parameter.requires_grad
    ]
    ledger = Ledger(known)
    try:
        with ledger:
            results = run()
        kept, forward = ledger.now(), ledger.flop
        gradients = [torch.empty_like(result) for result in results]  # somebody else's
        with ledger:
            torch.autograd.backward(results, gradients)
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(forward, ledger.flop - forward, kept, ledger.peak - kept)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
