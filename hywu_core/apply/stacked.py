"""Experts whose weights are stacked in tensors, as in transformers: the routed product, with updates inside.

The update has to enter before the activation, so the module's own forward cannot be used: the product is
computed here, expert by expert and for the routed rows only, from the module's own tensors and activation.
Tokens come flattened with the batch as the slow axis, so adapter p of P owns the p-th part of them.

Shapes: T tokens, k experts of a token, N rows routed to one expert, P adapters, E experts, r rank.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import HywuError
from .dispatcher import Dispatcher, SidePath
from .linear import require_shares

_ROUTED = ["hidden_states", "top_k_index", "top_k_weights"]
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, eq=False)
class StackedPart:
    """A target's rows of a stacked tensor; rows None are all."""

    weight: Tensor
    d_in: int
    d_out: int
    n_experts: int
    down: bool  # of the second of the two products
    rows: slice | None = None


@dataclass(frozen=True, eq=False)
class StackedPath:
    """A target's update in the routed product."""

    path: SidePath
    part: StackedPart

    def add(self, y: Tensor, x: Tensor, expert: int, owner: Tensor | None) -> None:
        """Add one expert's update for x (N, d_in) to y (N, out) in place; row n is adapter owner[n]'s."""
        A, B = (tensor.to(y) for tensor in self.path.pair(expert))
        x = x.to(y.dtype)
        if len(A) == 1:
            h = x @ A[0].T
        else:
            # All P products, of which each row keeps its own: r is small, and there is nothing to sort.
            every = (x @ A.flatten(0, 1).T).unflatten(1, (len(A), -1))
            h = (every * F.one_hot(owner, len(A)).to(y.dtype)[..., None]).flatten(1)
        delta = h @ (B.transpose(1, 2).flatten(0, 1) * self.path.scale)
        y[:, self.part.rows or slice(None)] += delta


class Stacked(Dispatcher):
    """The forward of a module of stacked experts with attachments."""

    paths: tuple[StackedPath, ...]

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._signature = _signature(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """hidden_states (T, D), top_k_index (T, k), top_k_weights (T, k) to (T, D)."""
        paths = [path for path in self.paths if path.path.scale]
        if not paths:
            return self.own(*args, **kwargs)
        return self._routed(paths, *self._signature.bind(*args, **kwargs).args)

    def _routed(
        self, paths: Sequence[StackedPath], hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Tensor:
        module, n_experts = self.module, paths[0].part.n_experts
        n_tokens, k = top_k_index.shape
        owners = {
            adapters: _owners(adapters, n_tokens, paths[0].path.batch, hidden.device)
            for adapters in {path.path.adapters for path in paths}
        }
        with torch.no_grad():
            expert_of = top_k_index.reshape(-1)
            places = expert_of.argsort(stable=True)  # of the T * k, those of the first expert first
            counts = torch.bincount(expert_of, minlength=n_experts).tolist()
        out = torch.zeros_like(hidden)
        # What goes to a number beyond the experts stands for another device's: it adds nothing here.
        for expert, rows in enumerate(places.split(counts)[:n_experts]):
            if not len(rows):
                continue
            token, choice = rows // k, rows % k
            x = hidden[token]
            y = _linear(module, x, "gate_up_proj" if _gated(module) else "up_proj", expert)
            mine = {adapters: None if owner is None else owner[token] for adapters, owner in owners.items()}
            for path in paths:
                if not path.part.down:
                    path.add(y, x, expert, mine[path.path.adapters])
            h = _activation(module, y)
            y = _linear(module, h, "down_proj", expert)
            for path in paths:
                if path.part.down:
                    path.add(y, h, expert, mine[path.path.adapters])
            if getattr(module, "has_post_expert_norm", False):
                y = module.post_expert_norm(y)
            out.index_add_(0, token, (y * top_k_weights[token, choice, None]).to(out.dtype))
        return out


def _owners(adapters: int, n_tokens: int, batch: int | None, device: torch.device) -> Tensor | None:
    """Whose each token is (T,), or None where all are one adapter's. Tokens come row by row of the batch."""
    if adapters == 1:
        return None
    require_shares(adapters, batch or n_tokens)
    if batch and n_tokens % batch:
        raise HywuError(
            f"{adapters} adapters are attached, but the experts get {n_tokens} tokens of {batch} rows: some "
            "were left out, and nobody knows whose the others are. Attach one adapter."
        )
    return torch.arange(n_tokens, device=device) * adapters // max(n_tokens, 1)


def _signature(module: nn.Module) -> inspect.Signature:
    """Of the class's forward without self, also while the instance's is shadowed."""
    signature = inspect.signature(type(module).forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def part_of_stacked(module: nn.Module, role: str, name: str) -> StackedPart | None:
    """The rows that a role (w1, w2, w3, or a tensor's name) has in stacked experts; None for other modules.

    Raises HywuError where the experts are stacked, but not as this file computes them.
    """
    down = getattr(module, "down_proj", None)
    up_name = "gate_up_proj" if _gated(module) else "up_proj"
    up = getattr(module, up_name, None)
    if not all(isinstance(tensor, Tensor) and tensor.dim() == 3 for tensor in (up, down)):
        return None
    called_with = list(_signature(module).parameters)
    if called_with != _ROUTED or up.dtype not in _FLOATS:
        raise HywuError(
            f"Target {name!r}: {type(module).__name__} holds its experts as {up.dtype} and is called with "
            f"({', '.join(called_with)}); only float experts that are called with ({', '.join(_ROUTED)}) can "
            "be adapted."
        )
    transposed = getattr(module, "is_transposed", False)
    weight = down if role in ("w2", "down_proj") else up
    n_experts, d_out, d_in = weight.mT.shape if transposed else weight.shape
    if weight is down:
        return StackedPart(weight, d_in, d_out, n_experts, down=True)
    if role == up_name or (role == "w3" and not _gated(module)):
        return StackedPart(weight, d_in, d_out, n_experts, down=False)
    if role not in ("w1", "w3") or not _gated(module):
        raise HywuError(f"Target {name!r}: the experts of a {type(module).__name__} have no such linear.")
    second = role == "w3"
    if getattr(module, "is_concatenated", True):
        rows = slice(d_out // 2, d_out) if second else slice(0, d_out // 2)
    else:
        rows = slice(int(second), d_out, 2)
    return StackedPart(weight, d_in, d_out // 2, n_experts, down=False, rows=rows)


def _gated(module: nn.Module) -> bool:
    return isinstance(getattr(module, "gate_up_proj", None), Tensor)


def _linear(module: nn.Module, x: Tensor, name: str, expert: int) -> Tensor:
    weight, bias = getattr(module, name)[expert], getattr(module, f"{name}_bias", None)
    return F.linear(
        x,
        weight.T if getattr(module, "is_transposed", False) else weight,
        None if bias is None else bias[expert],
    )


def _activation(module: nn.Module, y: Tensor) -> Tensor:
    if not _gated(module):
        return module.act_fn(y)
    if hasattr(module, "_apply_gate"):
        return module._apply_gate(y)
    gate, up = y.chunk(2, dim=-1)
    return module.act_fn(gate) * up
