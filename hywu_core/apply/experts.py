"""Grouped experts: updates of the linears of a mixture's experts, for the rows that are routed to them.

A target such as `mlp.experts.w1` stands for one linear in each of E experts: w1 the gate, w3 the up and w2
the down projection of a gated feed-forward, y = w2(act(w1 x) * w3 x). Its A is (P, E, r, d_in), its B
(P, E, d_out, r). Two forms of experts are known:

* a list of modules, each with its own linears (`w1`, `gate_proj` ...). Each expert's linear gets a side path
  of its own, and so is computed for exactly the rows that the router sends there. With several adapters the
  rows of an expert belong to different ones, in an order that only the routing code knows; so the experts run
  once for each adapter, on its part of the batch (`turns.py`).
* tensors that hold all experts, as in transformers: see `stacked.py`.

Shapes: N rows routed to one expert, P adapters, E experts, r rank, D model width, I inner width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import HywuError
from ..lora.spec import is_linear
from .dispatcher import Dispatcher, SidePath, Site
from .stacked import Stacked, StackedPath, part_of_stacked
from .turns import Turns, Witness

# The same linear in other people's words.
_ALIASES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_CANONICAL = {alias: name for name, alias in _ALIASES.items()}
# Linears that hold two of them, one after the other. HunyuanImage-3 has the up projection first.
_HALVES = {"gate_up_proj": ("w1", "w3"), "gate_and_up_proj": ("w3", "w1")}


@dataclass(frozen=True)
class Part:
    """A linear's output rows that belong to a target, and the weight that tells device and dtype."""

    d_in: int
    d_out: int
    linear: nn.Module
    rows: slice | None = None  # None is all of them


class ExpertPath:
    """A target's update at one expert's linear."""

    def __init__(self, path: SidePath, expert: int, rows: slice | None) -> None:
        self.path, self.expert, self.rows = path, expert, rows

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        """y (N, out) with the update for the routed rows x (N, d_in) added to its rows of the output."""
        path = self.path
        if path.scale == 0 or not x.numel():
            return y
        A, B = path.pair(self.expert)
        if len(A) > 1:
            raise HywuError(
                f"{len(A)} adapters are attached to these experts, but one was called by itself, and nobody "
                "knows which of its rows belong to which adapter. Attach one adapter."
            )
        delta = (x.to(y.dtype) @ A[0].T.to(y)) @ (B[0].T.to(y) * path.scale)
        rows = self.rows or slice(0, y.shape[-1])
        if torch.is_grad_enabled():
            return y + F.pad(delta, (rows.start, y.shape[-1] - rows.stop))
        y[..., rows] += delta
        return y


class Experts:
    """The experts that a target name stands for, and how its update gets to them.

    model, name: the model, and the target's name in it. Raises AttributeError where the model has no such
    module, and HywuError for experts of an unknown form.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        group, _, self.role = name.rpartition(".")
        self.name = name
        self.group = model.get_submodule(group)
        block, _, _ = group.rpartition(".")
        self._block = model.get_submodule(block) if group else None
        role = _CANONICAL.get(self.role, self.role)
        self.stacked = part_of_stacked(self.group, role, name)
        self.parts: Sequence[Part] = ()
        if self.stacked is None:
            self.parts = tuple(self._parts(role))

    @property
    def weight(self) -> Tensor | None:
        """A tensor of the experts, where the adapter's are to be and in what dtype; None if there is none."""
        if self.stacked is not None:
            return self.stacked.weight
        return getattr(self.parts[0].linear, "weight", None)

    def check(self, A: Tensor, B: Tensor) -> None:
        """HywuError unless A (P, E, r, d_in) and B (P, E, d_out, r) are for these experts."""
        found = self.parts if self.stacked is None else [self.stacked]
        n_experts = len(self.parts) if self.stacked is None else self.stacked.n_experts
        if A.dim() != 4:
            raise HywuError(
                f"Target {self.name!r} has {n_experts} experts in the model, none in the adapter."
            )
        if A.shape[1] != n_experts:
            raise HywuError(
                f"Target {self.name!r} has {n_experts} experts in the model, but {A.shape[1]} in the "
                "adapter; this adapter is for another backbone."
            )
        for part in found:
            if (part.d_in, part.d_out) != (A.shape[-1], B.shape[-2]):
                raise HywuError(
                    f"Target {self.name!r} is {part.d_in} -> {part.d_out} in the model, but "
                    f"{A.shape[-1]} -> {B.shape[-2]} in the adapter; this adapter is for another backbone."
                )

    def sites(self, path: SidePath) -> Iterator[Site]:
        """Where a path has to act for this target."""
        if self.stacked is not None:
            yield Site(self.group, Stacked, StackedPath(path, self.stacked))
        else:
            for expert, part in enumerate(self.parts):
                yield Site(part.linear, Dispatcher, ExpertPath(path, expert, part.rows))
        # A list without a forward of its own is run by its block, which then takes the turns.
        runs = self.stacked is not None or type(self.group).forward is not nn.ModuleList.forward
        if self.stacked is None:
            yield Site(self.group if runs else self._block, Turns, path)
        if runs and self._block is not None:
            yield Site(self._block, Witness, path)

    def _parts(self, role: str) -> Iterator[Part]:
        if not isinstance(self.group, nn.ModuleList) or not len(self.group):
            raise HywuError(
                f"Target {self.name!r} has an expert axis, but {type(self.group).__name__} is neither a list "
                "of experts nor one of transformers' modules that hold all of them in their tensors."
            )
        for number, expert in enumerate(self.group):
            part = _part_of_expert(expert, role)
            if part is None:
                linears = ", ".join(name for name, child in expert.named_children() if is_linear(child))
                raise HywuError(
                    f"Target {self.name!r}: expert {number} is a {type(expert).__name__} without a linear of "
                    f"that name; it has {linears or 'none'}."
                )
            yield part


def _part_of_expert(expert: nn.Module, role: str) -> Part | None:
    """The linear of an expert that plays a role, or the half of one; None where there is none."""
    for name in (role, _ALIASES.get(role, role)):
        linear = getattr(expert, name, None)
        if linear is not None and is_linear(linear):
            return Part(linear.in_features, linear.out_features, linear)
    for name, halves in _HALVES.items():
        linear = getattr(expert, name, None)
        if linear is not None and is_linear(linear) and role in halves and linear.out_features % 2 == 0:
            half = linear.out_features // 2
            start = halves.index(role) * half
            return Part(linear.in_features, half, linear, slice(start, start + half))
    return None
