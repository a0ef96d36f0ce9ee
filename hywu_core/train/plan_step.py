"""The two halves of a HY-WU step, rehearsed: the generator writes, the backbone runs with what was written.

A block is like the next one, so two of each sort are rehearsed, then three, and the rest is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from ..conditions import Condition
from ..lora import Adapter, LoraSpec
from .plan_arrangement import Numbers, Shares
from .plan_blocks import Chosen, Sort, ends, only_chosen, sort_blocks
from .plan_sizes import TrainSize
from .plan_trace import Trace, trace

_FEW = 2  # blocks of each sort: the first of a generator is not like the others


@dataclass(frozen=True)
class Weights:
    """Numbers of weights: all, and in the largest block, which is what FSDP gathers at a time.

    linears: of the backbone, those in linears of blocks, which quantisation is for.
    """

    generator: int
    generator_block: int
    backbone: int
    backbone_block: int
    linears: int

    @classmethod
    def of(cls, size: TrainSize) -> Weights:
        """Counted in modules without memory."""
        with torch.device("meta"):
            generator, backbone = size.build_generator(), size.backbone.build()
        lists = [module for module in backbone.modules() if isinstance(module, nn.ModuleList)]
        blocks = [block for each in lists for block in each if _count(block) > 2**16]
        linears = sum(p.numel() for each in blocks for p in each.parameters() if p.dim() >= 2)
        return cls(
            generator.n_parameters,
            _count(generator.blocks[0]),
            _count(backbone),
            max(map(_count, blocks)),
            linears,
        )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@dataclass(frozen=True)
class Rehearsal:
    """What does not depend on the number of GPUs: weights, and the traces of one micro-batch of a rank."""

    weights: Weights
    generator: Trace
    backbone: Trace

    @classmethod
    def of(cls, size: TrainSize, shares: Shares, numbers: Numbers) -> Rehearsal:
        """Counted on the step's own code."""
        return cls(
            Weights.of(size),
            rehearse_generator(size, shares.conditions, numbers),
            rehearse_backbone(size, shares.adapters, shares.rows, numbers),
        )


def rehearse_generator(size: TrainSize, conditions: int, numbers: Numbers) -> Trace:
    """From a batch of conditions to adapters, and back."""
    n_layers = size.generator.n_layers
    if n_layers <= _FEW + 1:
        return _generator(size, n_layers, conditions, numbers)
    few, more = (_generator(size, n, conditions, numbers) for n in (_FEW, _FEW + 1))
    return few.grown({"blocks": more}, {"blocks": n_layers - _FEW})


def rehearse_backbone(size: TrainSize, adapters: int, rows: int, numbers: Numbers) -> Trace:
    """From adapters, which are not counted, to the loss of `rows` pictures, and back to their gradient."""
    sorts = sort_blocks(size)

    def rehearse(one_more: Sort | None = None) -> Trace:
        return _backbone(size, ends(sorts, one_more), adapters, rows, numbers)

    more = {sort: len(blocks) - _FEW for sort, blocks in sorts.items() if len(blocks) > _FEW}
    return rehearse().grown({sort: rehearse(sort) for sort in more}, more)


def _generator(size: TrainSize, n_layers: int, conditions: int, numbers: Numbers) -> Trace:
    with FakeTensorMode(), numbers.context():
        with made_in(numbers.weights):
            generator = size.build_generator(n_layers).train()
        generator.gradient_checkpointing = numbers.checkpointing
        tokens = torch.zeros(conditions, size.n_condition, size.generator.condition_dim)

        def run() -> Sequence[Tensor]:
            adapter = generator(Condition(tokens.to(numbers.weights)))
            return [tensor for pair in adapter.values() for tensor in pair]

        return trace(run, [*generator.parameters(), *generator.buffers(), tokens], generator)


def _backbone(size: TrainSize, chosen: Chosen, adapters: int, rows: int, numbers: Numbers) -> Trace:
    with FakeTensorMode(), numbers.context():
        with made_in(numbers.backbone):
            blocks = {kind: len(chosen.get(kind, ())) for kind in size.backbone.blocks}
            module = size.backbone.with_blocks(blocks).build().requires_grad_(False).train()
        if numbers.checkpointing:
            module.enable_gradient_checkpointing()
        spec = only_chosen(size.spec, size.backbone, chosen)
        adapter = zero_adapter(spec, adapters, numbers.written)
        known = [*module.parameters(), *module.buffers(), *(t for pair in adapter.values() for t in pair)]

        def run() -> Sequence[Tensor]:
            size.backbone.adapt(module, adapter)
            velocity = size.backbone.velocity(module, rows, numbers.backbone, torch.device("cpu"))
            return [velocity.float().square().mean()]

        return trace(run, known)


@contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside have weights of this dtype: without numbers they cannot be cast later."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def zero_adapter(spec: LoraSpec, batch: int, dtype: torch.dtype) -> Adapter:
    """An adapter as a generator hands it out: it wants a gradient."""
    weights = {}
    for target in spec.targets:
        A, B = (
            torch.zeros(shape, dtype=dtype, requires_grad=True)
            for shape in target.factor_shapes(spec.rank, batch)
        )
        weights[target.name] = (A, B)
    return Adapter(weights, spec.scale)
