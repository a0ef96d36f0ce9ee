"""Small mixtures of experts of every form there is, and their updates written out in full."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from hywu_core.lora import Adapter

D, INNER, E, K = 8, 6, 5, 2
DIMS = {"w1": (D, INNER), "w2": (INNER, D), "w3": (D, INNER)}


class Router(nn.Linear):
    """Gives (weights, indices) of the K best experts of a token; expert 0 never, expert 1 nearly always."""

    def __init__(self):
        super().__init__(D, E, bias=False)

    def forward(self, tokens):
        logits = super().forward(tokens.flatten(0, -2)).float()
        logits = logits + torch.tensor([-1e4, 3.0] + [0.0] * (E - 2))
        return torch.topk(logits.softmax(-1), K, dim=-1)


class Separate(nn.Module):
    """An expert with three linears, by any names."""

    def __init__(self, names=("w1", "w2", "w3")):
        super().__init__()
        self.names = names
        for name, (d_in, d_out) in zip(names, DIMS.values(), strict=True):
            self.add_module(name, nn.Linear(d_in, d_out, bias=False))

    def forward(self, x):
        w1, w2, w3 = (getattr(self, name) for name in self.names)
        return w2(F.silu(w1(x)) * w3(x))

    def dense(self, e):
        return {role: getattr(self, name).weight for role, name in zip(DIMS, self.names, strict=True)}


class UpThenGate(nn.Module):
    """HunyuanImage-3's expert: the first half of the fused output is the up projection."""

    def __init__(self):
        super().__init__()
        self.gate_and_up_proj = nn.Linear(D, 2 * INNER, bias=False)
        self.down_proj = nn.Linear(INNER, D, bias=False)

    def forward(self, x):
        up, gate = self.gate_and_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * F.silu(gate))

    def dense(self, e):
        up, gate = self.gate_and_up_proj.weight.chunk(2)
        return {"w1": gate, "w2": self.down_proj.weight, "w3": up}


class GateThenUp(UpThenGate):
    """The other order, under the name that transformers gives it."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = self.gate_and_up_proj
        del self.gate_and_up_proj

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * F.silu(gate))

    def dense(self, e):
        gate, up = self.gate_up_proj.weight.chunk(2)
        return {"w1": gate, "w2": self.down_proj.weight, "w3": up}


class PlainList(nn.Module):
    """A block that routes by itself, expert by expert, the best choices of all tokens first."""

    def __init__(self, make=Separate):
        super().__init__()
        self.gate = Router()
        self.shared = nn.Linear(D, D, bias=False)
        self.experts = nn.ModuleList(make() for _ in range(E))

    def forward(self, hidden):
        tokens = hidden.reshape(-1, D)
        weights, chosen = self.gate(hidden)
        out = torch.zeros_like(tokens)
        mask = F.one_hot(chosen, E).permute(2, 1, 0)
        for e, expert in enumerate(self.experts):
            choice, token = torch.where(mask[e])
            if len(token):
                out.index_add_(0, token, expert(tokens[token]) * weights[token, choice, None].to(tokens))
        return out.view_as(hidden) + self.shared(hidden)


class RunningList(nn.ModuleList):
    """A list with a forward and the router of its own, as HunyuanImage-3's, on (B, S, D)."""

    def __init__(self, experts, gate):
        super().__init__(experts)
        object.__setattr__(self, "route", gate)

    def forward(self, hidden):
        weights, chosen = self.route(hidden)
        tokens, k = hidden.reshape(-1, D), chosen.shape[1]
        order = chosen.flatten().sort(stable=True)[1]
        counts = chosen.flatten().bincount(minlength=E).tolist()
        chunks = tokens[order // k].split(counts)
        y = torch.cat([self[e](chunk) if len(chunk) else chunk for e, chunk in enumerate(chunks)])
        y = y * weights.flatten()[order, None].to(y)
        return torch.zeros_like(tokens).index_add(0, order // k, y).view_as(hidden)


class ListThatRuns(nn.Module):
    def __init__(self, make=UpThenGate):
        super().__init__()
        self.gate = Router()
        self.shared = nn.Linear(D, D, bias=False)
        self.experts = RunningList([make() for _ in range(E)], self.gate)

    def forward(self, hidden):
        return self.experts(hidden) + self.shared(hidden)


class StackedExperts(nn.Module):
    """All experts in tensors, called as transformers calls them, with its own plain forward."""

    transposed, interleaved, biased = False, False, False

    def __init__(self):
        super().__init__()
        self.num_experts, self.act_fn = E, nn.SiLU()
        self.is_transposed, self.is_concatenated = self.transposed, not self.interleaved
        up, down = torch.randn(E, 2 * INNER, D) / 3, torch.randn(E, D, INNER) / 3
        self.gate_up_proj = nn.Parameter(up.mT.contiguous() if self.transposed else up)
        self.down_proj = nn.Parameter(down.mT.contiguous() if self.transposed else down)
        if self.biased:
            self.gate_up_proj_bias = nn.Parameter(torch.randn(E, 2 * INNER))
            self.down_proj_bias = nn.Parameter(torch.randn(E, D))

    def forward(self, hidden_states, top_k_index, top_k_weights):
        out = torch.zeros_like(hidden_states)
        for token, (chosen, weights) in enumerate(zip(top_k_index, top_k_weights, strict=True)):
            for e, weight in zip(chosen.tolist(), weights, strict=True):
                x = hidden_states[token]
                y = x @ (self.gate_up_proj[e] if self.transposed else self.gate_up_proj[e].T)
                y = self._apply_gate(y + self.gate_up_proj_bias[e] if self.biased else y)
                y = y @ (self.down_proj[e] if self.transposed else self.down_proj[e].T)
                out[token] += (y + self.down_proj_bias[e] if self.biased else y) * weight
        return out

    def _apply_gate(self, y):
        gate, up = (y[..., ::2], y[..., 1::2]) if self.interleaved else y.chunk(2, dim=-1)
        return self.act_fn(gate) * up

    def dense(self, e):
        both = self.gate_up_proj[e].T if self.transposed else self.gate_up_proj[e]
        gate, up = (both[::2], both[1::2]) if self.interleaved else both.chunk(2)
        return {"w1": gate, "w2": self.down_proj[e].T if self.transposed else self.down_proj[e], "w3": up}


class OtherLayout(StackedExperts):
    """gpt-oss: transposed, gate and up interleaved, with biases."""

    transposed, interleaved, biased = True, True, True


class Tensors(nn.Module):
    """A block that flattens its batch before the stacked experts see it."""

    def __init__(self, make=StackedExperts):
        super().__init__()
        self.gate, self.experts = Router(), make()
        self.shared = nn.Linear(D, D, bias=False)

    def forward(self, hidden):
        weights, chosen = self.gate(hidden)
        routed = self.experts(hidden.reshape(-1, D), chosen, weights.to(hidden))
        return routed.view_as(hidden) + self.shared(hidden)


class Model(nn.Module):
    """Two layers, so that one layer's output is routed by the next."""

    def __init__(self, block, make=None):
        super().__init__()
        self.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for layer in self.layers:
            layer.mlp = block(make) if make else block()

    def forward(self, hidden):
        for layer in self.layers:
            hidden = hidden + layer.mlp(hidden)
        return hidden


def adapter_for(model, adapters=1, rank=2, scale=0.5, requires_grad=False, shared=True):
    """Updates of all experts of both layers, and of the linear beside them."""

    def matrix(*shape):
        return (torch.randn(adapters, *shape) / 2).requires_grad_(requires_grad)

    weights = {
        f"layers.{layer}.mlp.experts.{role}": (matrix(E, rank, d_in), matrix(E, d_out, rank))
        for layer in range(len(model.layers))
        for role, (d_in, d_out) in DIMS.items()
    }
    if shared:
        weights |= {
            f"layers.{layer}.mlp.shared": (matrix(rank, D), matrix(D, rank))
            for layer in range(len(model.layers))
        }
    return Adapter(weights, scale)


def merged(model, adapter, index=0, strength=1.0):
    """The dense formula: adapter `index` written into a copy's weights, W + scale * B A for every expert."""
    model = copy.deepcopy(model).requires_grad_(False)
    for module in model.modules():
        module.__dict__.pop("forward", None)  # of an attachment to the original
    for name, (A, B) in adapter.items():
        update = strength * adapter.scale * (B[index] @ A[index]).detach()
        group, _, role = name.rpartition(".")
        if role == "shared":
            model.get_submodule(name).weight += update
            continue
        experts = model.get_submodule(group)
        for e in range(E):
            holder = experts[e] if isinstance(experts, nn.ModuleList) else experts
            holder.dense(e)[role].add_(update[e])
    return model
