"""A generator's large matrices in one byte a weight, for devices with little memory.

Shapes: N outputs and K inputs of a linear, M rows of an activation.

Only the linears of the blocks are quantised: 99.4 % of the released 8.11B. What is left, the embeddings, the
norms, the way in and the two projections out, is small and read by everything. Every output channel has a
scale of its own, float32, so that a channel of small weights is as exact as one of large ones:

    int8    codes -127 .. 127. Where there are fast integer products (`integer_products`), the activations are
            rounded to 8 bits too, each row by its own scale; elsewhere, and wherever a gradient is recorded,
            a linear's weights are written out for the length of its call.
    fp8     float8_e4m3fn, always written out for the call. A code has 3 bits of mantissa, where int8 spends 7
            bits on a channel of like weights: less exact, as `python -m hywu_core.study quantise` measures.

What torch ships is enough for this. torchao would be a dependency that ComfyUI does not bring, for kernels
that the same torch functions call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import HywuError
from .model import ParameterGenerator


class Kind(NamedTuple):
    """One way to keep a weight in a byte: its dtype, the largest value of a code, its name in a file."""

    dtype: torch.dtype
    largest: float
    stored_as: str


KINDS: Mapping[str, Kind] = {
    "int8": Kind(torch.int8, 127.0, "I8"),
    "fp8": Kind(torch.float8_e4m3fn, 448.0, "F8_E4M3"),
}

_CHUNK = 2**22  # weights quantised at a time: 16 MiB for each of two float32 temporaries
# Rows of an integer product go in parts of this size, counted in float32: as small as keeps the device busy.
# Elsewhere than on a CPU that is about one large weight of the released generator written out in bfloat16.
_PART_BYTES = {"cpu": 2**20}
_PART_BYTES_ELSEWHERE = 2**26
_FEWEST_ROWS = 32  # below, an integer product is not offered by CUDA (16) or does not pay


def require_kind(kind: str) -> Kind:
    """The kind of that name, or a HywuError that lists them."""
    if kind not in KINDS:
        raise HywuError(f"A generator cannot be quantised to {kind!r}; choose one of {', '.join(KINDS)}.")
    return KINDS[kind]


def quantize_rows(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """weight (N, K) to codes (N, K) and scales (N,) float32, such that codes * scale is nearest to it."""
    dtype, largest, _ = require_kind(kind)
    codes = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    rows_at_once = max(1, _CHUNK // weight.shape[1])
    for start in range(0, len(weight), rows_at_once):
        part = slice(start, start + rows_at_once)
        rows = weight[part].float()
        peak = rows.abs().amax(dim=1).div_(largest)
        scale[part] = peak.clamp_min_(torch.finfo(torch.float32).tiny)  # a row of zeros has codes of zero
        rows = rows / scale[part, None]
        codes[part] = rows if dtype.is_floating_point else rows.round_()
    return codes, scale


def integer_products(device: torch.device) -> bool:
    """Whether int8 matrices multiply faster than float ones here.

    On CPUs with AVX512-VNNI (a linear takes half of float32's time on the one measured, rounding included)
    and on NVIDIA GPUs of compute capability 8.0 and later, where it is not measured yet. Without such units
    torch's own product is a plain loop.
    """
    if device.type == "cpu":
        return getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
    if device.type == "cuda" and torch.version.hip is None:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return False


def part_bytes(device: torch.device) -> int:
    """Bytes of one part of an integer product, counted in float32."""
    return _PART_BYTES.get(device.type, _PART_BYTES_ELSEWHERE)


class QuantizedLinear(nn.Module):
    """y = x (codes * scale)^T + bias, with codes of one byte; made by `quantize_generator`.

    weight: (N, K) codes.  weight_scale: (N,) float32.  bias: (N,) in the dtype the generator computes in, or
    None. Moving and casting the generator moves codes and scales and casts neither.
    """

    weight_scale: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool, kind: str, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.kind = in_features, out_features, kind
        codes = torch.empty(out_features, in_features, dtype=require_kind(kind).dtype, device=device)
        # A parameter, so that it counts as one; it never has a gradient.
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("weight_scale", torch.empty(out_features, dtype=torch.float32, device=device))
        self.bias = (
            nn.Parameter(torch.empty(out_features, device=device), requires_grad=False) if bias else None
        )
        self.integer_activations = True
        super().train(False)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{self.in_features} -> {self.out_features}, {self.kind}"

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) to (..., N) in x's dtype; differentiable in x."""
        if self._multiplies_integers(x):
            return self._integer_product(x)
        return F.linear(x, self.dequantized(x.dtype), self.bias)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight (N, K), rounded once: every code is exact in the float dtypes there are."""
        return self.weight.to(dtype).mul_(self.weight_scale[:, None])

    def _multiplies_integers(self, x: Tensor) -> bool:
        return (
            self.integer_activations
            and self.kind == "int8"
            and not (torch.is_grad_enabled() and x.requires_grad)
            and x.numel() >= _FEWEST_ROWS * self.in_features
            and self.in_features % 8 == 0
            and self.out_features % 8 == 0
            and integer_products(x.device)
        )

    def _integer_product(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        y = x.new_empty(len(rows), self.out_features)
        n_bytes = part_bytes(x.device)
        rows_at_once = max(2 * _FEWEST_ROWS, n_bytes // (4 * (self.in_features + self.out_features)))
        # Parts of nearly one size: a short rest could be below the fewest rows.
        n_parts = -(-len(rows) // rows_at_once)
        for x_part, y_part in zip(rows.tensor_split(n_parts), y.tensor_split(n_parts), strict=True):
            # What is not finite makes its row's scale not finite, and so the row of y.
            peak = x_part.abs().amax(dim=1, keepdim=True).float()
            scale = peak.clamp_min_(torch.finfo(torch.float32).tiny * 127).div_(127)
            codes = (x_part / scale).round_().to(torch.int8)
            sums = torch._int_mm(codes, self.weight.T) * scale
            sums.mul_(self.weight_scale)
            y_part.copy_(sums if self.bias is None else sums.add_(self.bias))
        return y.view(*x.shape[:-1], self.out_features)

    def train(self, mode: bool = True) -> QuantizedLinear:
        """Only off: there is no gradient step smaller than a code."""
        if mode:
            raise HywuError(
                f"This generator is quantised to {self.kind} and cannot be trained; load a full one."
            )
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            kept = tensor is self.weight_scale or tensor.dtype == self.weight.dtype
            return tensor.to(moved.device) if kept and moved.dtype != tensor.dtype else moved

        return super()._apply(move, recurse)


def quantization_of(generator: nn.Module) -> str | None:
    """The kind a generator is quantised to, or None."""
    return next((m.kind for m in generator.modules() if isinstance(m, QuantizedLinear)), None)


def stored_exactly(generator: nn.Module) -> dict[str, str]:
    """The tensors of its state dict that are never cast, codes and scales, and what they are in a file."""
    return {
        f"{name}.{leaf}": kind
        for name, module in generator.named_modules()
        if isinstance(module, QuantizedLinear)
        for leaf, kind in (("weight", KINDS[module.kind].stored_as), ("weight_scale", "F32"))
    }


def quantize_generator(generator: ParameterGenerator, kind: str) -> ParameterGenerator:
    """Quantise the blocks' linears in place, one after the other, and return the generator, in eval mode.

    A generator on the meta device is only given the form. No weight of a quantised generator is trained:
    all are frozen, and `train()` says so. Raises HywuError for an unknown kind or one quantised already.
    """
    require_kind(kind)
    if before := quantization_of(generator):
        raise HywuError(
            f"This generator is quantised to {before} already; quantise the one in full precision to {kind}."
        )
    for parent in list(generator.blocks.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, nn.Linear):
                setattr(parent, name, _quantized(linear, kind))
    return generator.eval().requires_grad_(False)


def _quantized(linear: nn.Linear, kind: str) -> QuantizedLinear:
    has_bias = linear.bias is not None
    quantized = QuantizedLinear(linear.in_features, linear.out_features, has_bias, kind, "meta")
    if linear.weight.is_meta:
        return quantized
    codes, scale = quantize_rows(linear.weight.detach(), kind)
    state = {"weight": codes, "weight_scale": scale} | ({"bias": linear.bias.detach()} if has_bias else {})
    quantized.load_state_dict(state, assign=True)
    return quantized


class Weights:
    """A generator's state dict, filled tensor by tensor from files; quantised on the way where it is to be.

    generator: built on the meta device, and given the form by `quantize_generator` if it is to be quantised.
    device, dtype: where the weights go, and what all but codes and scales are cast to.
    """

    def __init__(
        self, generator: ParameterGenerator, device: torch.device | str | None, dtype: torch.dtype
    ) -> None:
        self._shapes = {name: tensor.shape for name, tensor in generator.state_dict().items()}
        self._linears = {
            f"{name}.weight": module
            for name, module in generator.named_modules()
            if isinstance(module, QuantizedLinear)
        }
        self._exact = stored_exactly(generator)
        self._device, self._dtype = torch.device(device or "cpu"), dtype
        self.tensors: dict[str, Tensor] = {}

    def put(self, name: str, tensor: Tensor, rows: slice | None = None) -> Tensor:
        """Copy a tensor to some rows of parameter `name`, by default all; return what has to be finite."""
        rows = slice(None) if rows is None else rows
        if name in self._linears:
            return self._put_codes(name, tensor, rows)
        dtype = torch.float32 if name in self._exact else self._dtype
        return self._place(name, dtype)[rows].copy_(tensor)

    def _put_codes(self, name: str, tensor: Tensor, rows: slice) -> Tensor:
        kind = self._linears[name].kind
        codes = self._place(name, KINDS[kind].dtype)[rows]
        if tensor.dtype == codes.dtype:  # a file of a quantised generator; its scales come by themselves
            codes.copy_(tensor)
            return tensor
        tensor = tensor.to(self._device)
        scale_name = name.replace(".weight", ".weight_scale")
        quantized, scale = quantize_rows(tensor, kind)
        codes.copy_(quantized)
        self._place(scale_name, torch.float32)[rows].copy_(scale)
        return tensor

    def _place(self, name: str, dtype: torch.dtype) -> Tensor:
        if name not in self.tensors:
            self.tensors[name] = torch.empty(self._shapes[name], dtype=dtype, device=self._device)
        return self.tensors[name]
