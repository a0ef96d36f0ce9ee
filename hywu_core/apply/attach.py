"""Attach an adapter to any torch module as a side path, and take it off without a trace.

The forward of each target is shadowed in the module *instance* by a dispatcher that runs the module's own
forward and then every side path attached to it. Attachments stack, and can be removed in any order; the
last one to go restores the instance exactly. Base weights are never touched, so quantised and compiled
modules work as well.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

from ..errors import HywuError
from ..lora.adapter import Adapter
from ..lora.spec import is_linear
from .linear import low_rank_update


class _SidePath:
    """One low-rank update of one module."""

    A: Tensor
    B: Tensor
    scale: float
    dispatcher: _Dispatcher | None = None

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        if self.scale == 0:
            return y
        # y is the module's own fresh output: nobody else holds it, and without autograd it may be reused.
        return low_rank_update(y, x, self.A, self.B, self.scale, inplace=not torch.is_grad_enabled())


class _Dispatcher:
    """The forward of a module with attachments: its own forward, then the side paths in order."""

    def __init__(self, module: nn.Module) -> None:
        self.own: Callable[..., Tensor] = module.forward
        self.overridden = "forward" in module.__dict__  # some other tool shadows the class's forward already
        self.paths: tuple[_SidePath, ...] = ()

    def __call__(self, *args, **kwargs) -> Tensor:
        y = self.own(*args, **kwargs)
        x = args[0] if args else next(iter(kwargs.values()))
        for path in self.paths:
            y = path(y, x)
        return y

    @staticmethod
    def add(module: nn.Module, path: _SidePath) -> None:
        dispatcher = module.__dict__.get("forward")
        if not isinstance(dispatcher, _Dispatcher):
            dispatcher = _Dispatcher(module)
            module.forward = dispatcher
        dispatcher.paths += (path,)
        path.dispatcher = dispatcher

    @staticmethod
    def drop(module: nn.Module, path: _SidePath) -> None:
        dispatcher = path.dispatcher
        dispatcher.paths = tuple(other for other in dispatcher.paths if other is not path)
        # If another tool has put its own forward over ours since, ours stays below it, without effect.
        if not dispatcher.paths and module.__dict__.get("forward") is dispatcher:
            if dispatcher.overridden:
                module.forward = dispatcher.own
            else:
                del module.forward


class Attachment:
    """An adapter on a model; a context manager. Made by `attach`."""

    def __init__(self, model: nn.Module, adapter: Adapter, strength: float = 1.0) -> None:
        self._modules = _find_modules(model, adapter)
        self._paths: dict[str, _SidePath] = {name: _SidePath() for name in self._modules}
        self._strength = float(strength)
        self._own_tensors = False
        self._attached = False
        self._load(adapter)
        try:
            self._attached = True
            for name, module in self._modules.items():
                _Dispatcher.add(module, self._paths[name])
        except BaseException:
            self.remove()
            raise

    @property
    def attached(self) -> bool:
        """Whether the side paths are in place."""
        return self._attached

    @property
    def strength(self) -> float:
        """The factor on the update; assign to change it. At 0 the side paths are skipped."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = float(value)
        self._set_scale()

    def swap(self, adapter: Adapter) -> None:
        """Put another adapter of the same targets in the place of this one, without touching the modules.

        An adapter that requires grad is referred to, so gradients reach it. Any other is copied into
        tensors this attachment owns: where shapes are equal the addresses stay, and compiled or captured
        graphs see the new values.

        Raises `HywuError` if the attachment was removed or the targets differ.
        """
        if not self._attached:
            raise HywuError("This attachment was removed; attach the adapter anew.")
        if adapter.keys() != self._modules.keys():
            difference = adapter.keys() ^ self._modules.keys()
            raise HywuError(
                f"The adapter to swap in has {len(adapter)} targets, the attached one {len(self._modules)}; "
                f"they differ in {len(difference)} names, such as {min(difference)!r}. Remove this one, "
                "then attach the other."
            )
        for name, module in self._modules.items():
            _check_fits(name, module, adapter)
        self._load(adapter)

    def remove(self) -> None:
        """Restore every module as it was; again is no error."""
        if not self._attached:
            return
        self._attached = False
        for name, module in self._modules.items():
            if self._paths[name].dispatcher is not None:
                _Dispatcher.drop(module, self._paths[name])

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _set_scale(self) -> None:
        for path in self._paths.values():
            path.scale = self._scale * self._strength

    def _load(self, adapter: Adapter) -> None:
        self._scale = adapter.scale
        self._set_scale()
        if adapter.requires_grad:
            self._own_tensors = False
            for name, path in self._paths.items():
                path.A, path.B = adapter[name]
            return
        # Not inside inference mode: its tensors could not be copied into later, outside of it.
        with torch.inference_mode(False), torch.no_grad():
            for name, path in self._paths.items():
                A, B = adapter[name]
                if self._own_tensors and path.A.shape == A.shape and path.B.shape == B.shape:
                    path.A.copy_(A)
                    path.B.copy_(B)
                else:
                    path.A, path.B = _own(A, self._modules[name]), _own(B, self._modules[name])
        self._own_tensors = True


def attach(model: nn.Module, adapter: Adapter, strength: float = 1.0) -> Attachment:
    """Add the adapter's update to the linears of `model` that it names; return the handle that takes it off.

        with attach(model, adapter, strength=0.8): model(...)
        handle = attach(model, adapter); ...; handle.swap(other); ...; handle.remove()

    An adapter with batch 1 serves every row of the activations; one with batch P serves batches of k * P
    rows, k consecutive rows each. Gradients flow to A and B if they require grad.

    With activation checkpointing, keep the attachment until after `backward`, which runs the forward again.
    With torch.compile, attach once and `swap`: a new attachment is a new graph.

    Raises `HywuError`, before anything is changed, if the model lacks a target or its dims differ.
    """
    return Attachment(model, adapter, strength)


def _find_modules(model: nn.Module, adapter: Adapter) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {}
    missing: list[str] = []
    for name in adapter:
        try:
            modules[name] = model.get_submodule(name)
        except AttributeError:
            missing.append(name)
    if missing:
        raise HywuError(
            f"{type(model).__name__} has no module for {len(missing)} of the adapter's {len(adapter)} "
            f"targets, such as {missing[0]!r}; this adapter is for another backbone."
        )
    for name, module in modules.items():
        _check_fits(name, module, adapter)
    return modules


def _check_fits(name: str, module: nn.Module, adapter: Adapter) -> None:
    A, B = adapter[name]
    if not is_linear(module):
        raise HywuError(f"Target {name!r} is a {type(module).__name__}; only linear layers can be adapted.")
    if A.dim() != 3:
        raise HywuError(
            f"Target {name!r} has an expert axis of {A.shape[1]}; grouped experts cannot be attached."
        )
    if (A.shape[-1], B.shape[-2]) != (module.in_features, module.out_features):
        raise HywuError(
            f"Target {name!r} is {module.in_features} -> {module.out_features} in the model, but "
            f"{A.shape[-1]} -> {B.shape[-2]} in the adapter; this adapter is for another backbone."
        )


def _own(tensor: Tensor, module: nn.Module) -> Tensor:
    """A contiguous copy on the module's device and, unless its weight is quantised, in its dtype."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.device.type == "meta":
        return tensor.clone(memory_format=torch.contiguous_format)
    dtype = weight.dtype if weight.dtype in (torch.float32, torch.float16, torch.bfloat16) else tensor.dtype
    return torch.empty(tensor.shape, device=weight.device, dtype=dtype).copy_(tensor)
