"""Attach an adapter to any torch module as a side path, and take it off without a trace.

The forward of each target is shadowed in the module *instance* by a dispatcher that runs the module's own
forward and then every side path attached to it. Attachments stack, and can be removed in any order; the
last one to go restores the instance exactly. Base weights are never touched, so quantised and compiled
modules work as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType

import torch
from torch import Tensor, nn

from ..errors import HywuError
from ..lora.adapter import Adapter
from ..lora.spec import is_linear
from .dispatcher import Dispatcher, SidePath, Site
from .experts import Experts


class Attachment:
    """An adapter on a model; a context manager. Made by `attach`."""

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        strength: float = 1.0,
        copies: Callable[[str], int] | None = None,
    ) -> None:
        self._places = _find_places(model, adapter)
        self._copies = {name: copies(name) if copies is not None else 1 for name in self._places}
        self._paths = {name: SidePath() for name in self._places}
        self._sites = [site for name, path in self._paths.items() for site in self._places[name].sites(path)]
        self._strength = float(strength)
        self._own_tensors = False
        self._attached = False
        self._load(adapter)
        try:
            self._attached = True
            for site in self._sites:
                site.install()
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
        if adapter.keys() != self._places.keys():
            difference = adapter.keys() ^ self._places.keys()
            raise HywuError(
                f"The adapter to swap in has {len(adapter)} targets, the attached one {len(self._places)}; "
                f"they differ in {len(difference)} names, such as {min(difference)!r}. Remove this one, "
                "then attach the other."
            )
        for name, place in self._places.items():
            place.check(*adapter[name])
        self._load(adapter)

    def remove(self) -> None:
        """Restore every module as it was; again is no error."""
        if not self._attached:
            return
        self._attached = False
        for site in self._sites:
            site.remove()

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
                path.A, path.B = self._laid_out(name, adapter)
            return
        # Not inside inference mode: its tensors could not be copied into later, outside of it.
        with torch.inference_mode(False), torch.no_grad():
            for name, path in self._paths.items():
                A, B = self._laid_out(name, adapter)
                if self._own_tensors and path.A.shape == A.shape and path.B.shape == B.shape:
                    path.A.copy_(A)
                    path.B.copy_(B)
                else:
                    weight = self._places[name].weight
                    path.A, path.B = _own(A, weight), _own(B, weight)
        self._own_tensors = True

    def _laid_out(self, name: str, adapter: Adapter) -> tuple[Tensor, Tensor]:
        """A and B with an entry for each share of the rows that the target sees."""
        A, B = adapter[name]
        copies = self._copies[name] if adapter.batch > 1 else 1
        return (A, B) if copies == 1 else (torch.cat([A] * copies), torch.cat([B] * copies))


def attach(
    model: nn.Module,
    adapter: Adapter,
    strength: float = 1.0,
    copies: Callable[[str], int] | None = None,
) -> Attachment:
    """Add the adapter's update to the linears of `model` that it names; return the handle that takes it off.

        with attach(model, adapter, strength=0.8): model(...)
        handle = attach(model, adapter); ...; handle.swap(other); ...; handle.remove()

    An adapter with batch 1 serves every row of the activations; one with batch P serves batches of k * P
    rows, k consecutive rows each. Gradients flow to A and B if they require grad. A target with an expert
    axis goes to the experts of that name, see `experts.py`.

    copies: of a target's name, how many times it sees the whole batch, one after another (1 by default): a
        backbone that computes something at several times has such linears.

    With activation checkpointing, keep the attachment until after `backward`, which runs the forward again.
    With torch.compile, attach once and `swap`: a new attachment is a new graph.

    Raises `HywuError`, before anything is changed, if the model lacks a target or its dims differ.
    """
    return Attachment(model, adapter, strength, copies)


class _Linear:
    """The one linear that a target name stands for; as `Experts` are for a name with an expert axis."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.name, self.module = name, model.get_submodule(name)
        if not is_linear(self.module):
            raise HywuError(
                f"Target {name!r} is a {type(self.module).__name__}; only linear layers can be adapted."
            )

    @property
    def weight(self) -> Tensor | None:
        """Where the adapter's tensors are to be, and in what dtype."""
        return getattr(self.module, "weight", None)

    def check(self, A: Tensor, B: Tensor) -> None:
        """HywuError unless A (P, r, d_in) and B (P, d_out, r) are for this linear."""
        module = self.module
        if A.dim() != 3:
            raise HywuError(
                f"Target {self.name!r} has an expert axis of {A.shape[1]} in the adapter, but is one linear "
                "in the model; this adapter is for another backbone."
            )
        if (A.shape[-1], B.shape[-2]) != (module.in_features, module.out_features):
            raise HywuError(
                f"Target {self.name!r} is {module.in_features} -> {module.out_features} in the model, but "
                f"{A.shape[-1]} -> {B.shape[-2]} in the adapter; this adapter is for another backbone."
            )

    def sites(self, path: SidePath) -> Iterator[Site]:
        """Where a path has to act for this target."""
        yield Site(self.module, Dispatcher, path)


def _find_places(model: nn.Module, adapter: Adapter) -> dict[str, _Linear | Experts]:
    places: dict[str, _Linear | Experts] = {}
    missing: list[str] = []
    for name, (A, _) in adapter.items():
        try:
            places[name] = _Linear(model, name) if A.dim() == 3 or _has(model, name) else Experts(model, name)
        except AttributeError:
            missing.append(name)
    if missing:
        raise HywuError(
            f"{type(model).__name__} has no module for {len(missing)} of the adapter's {len(adapter)} "
            f"targets, such as {missing[0]!r}; this adapter is for another backbone."
        )
    for name, place in places.items():
        place.check(*adapter[name])
    return places


def _has(model: nn.Module, name: str) -> bool:
    try:
        return is_linear(model.get_submodule(name))
    except AttributeError:
        return False


def _own(tensor: Tensor, weight: Tensor | None) -> Tensor:
    """A contiguous copy on the weight's device and, unless the weight is quantised, in its dtype."""
    if not isinstance(weight, Tensor) or weight.device.type == "meta":
        return tensor.clone(memory_format=torch.contiguous_format)
    dtype = weight.dtype if weight.dtype in (torch.float32, torch.float16, torch.bfloat16) else tensor.dtype
    return torch.empty(tensor.shape, device=weight.device, dtype=dtype).copy_(tensor)
