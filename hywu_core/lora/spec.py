"""Which linears of a backbone get a low-rank update: bands of like layers, their shapes, rank and alpha.

A backbone's layers come in *bands* of like layers (FLUX: 19 double and 38 single blocks; Qwen-Image: 60
equal ones). Within a band every layer has the same adapted modules with the same shapes, so the parameter
tokens of a band are one rectangular tensor (paper 3.4). A `LoraSpec` is plain data: it survives JSON and
needs no model to be used.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from torch import nn

from ..errors import HywuError

Patterns = str | re.Pattern[str] | Iterable[str | re.Pattern[str]]


@dataclass(frozen=True)
class ModuleShape:
    """One adapted module of a layer: its path in the layer and dims; `experts` equal ones share a name."""

    name: str
    d_in: int
    d_out: int
    experts: int | None = None

    def __post_init__(self) -> None:
        if min(self.d_in, self.d_out, self.experts or 1) < 1 or self.experts == 0:
            raise HywuError(
                f"Module {self.name!r} has dims {self.d_in} -> {self.d_out} and experts {self.experts}; "
                "all of them must be at least 1."
            )


@dataclass(frozen=True)
class Target:
    """One adapted linear, named by its module path in the backbone; `layer` is its ModuleList index."""

    name: str
    d_in: int
    d_out: int
    band: str
    layer: int
    module: str
    experts: int | None = None

    def factor_shapes(self, rank: int, batch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A (batch, [experts,] rank, d_in) and of B (batch, [experts,] d_out, rank)."""
        lead = (batch,) if self.experts is None else (batch, self.experts)
        return (*lead, rank, self.d_in), (*lead, self.d_out, rank)


@dataclass(frozen=True)
class Band:
    """Like layers of one ModuleList.

    name: unique in the spec, usually the path of the ModuleList.
    modules: the adapted modules of every layer, in token order.
    layers: the layers' indices in the ModuleList, by default 0 .. n_layers - 1.
    path: where a layer lives, `{}` standing for its index; by default `name + ".{}"`, and "" for linears
        outside every ModuleList.
    """

    name: str
    n_layers: int
    modules: tuple[ModuleShape, ...]
    layers: tuple[int, ...] | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # lists come from JSON and from callers; the spec must stay hashable
        set_field(self, "modules", tuple(self.modules))
        set_field(self, "layers", tuple(range(self.n_layers) if self.layers is None else self.layers))
        set_field(self, "path", f"{self.name}.{{}}" if self.path is None else self.path)
        if not self.modules or self.n_layers < 1:
            raise HywuError(
                f"Band {self.name!r} has {self.n_layers} layers of {len(self.modules)} modules; "
                "it needs at least one of each."
            )
        if len(self.layers) != self.n_layers:
            raise HywuError(
                f"Band {self.name!r} has {self.n_layers} layers but {len(self.layers)} layer indices."
            )

    def target_name(self, layer: int, module: ModuleShape) -> str:
        """The module path in the backbone of `module` in the layer with ModuleList index `layer`."""
        return ".".join(part for part in (self.path.replace("{}", str(layer)), module.name) if part)

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """All targets, layer by layer and in module order within a layer."""
        return tuple(
            Target(self.target_name(layer, m), m.d_in, m.d_out, self.name, layer, m.name, m.experts)
            for layer in self.layers
            for m in self.modules
        )


@dataclass(frozen=True)
class LoraSpec:
    """The shape of an adapter: bands of targets, one rank, and alpha (the update is alpha / rank * B @ A).

    Raises `HywuError` for a rank below 1 and for band or target names that occur twice.
    """

    bands: tuple[Band, ...]
    rank: int = 16
    alpha: float = 16.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(self.bands))
        if self.rank < 1:
            raise HywuError(f"The LoRA rank is {self.rank}; it must be at least 1.")
        if not 0 < self.alpha <= sys.float_info.max:  # a whole number may be larger than that
            raise HywuError(f"The LoRA alpha is {self.alpha}; it must be positive and finite.")
        if not self.bands:
            raise HywuError("A LoRA spec needs at least one band of layers; this one has none.")
        for kind, names in (
            ("band", [band.name for band in self.bands]),
            ("target", [target.name for target in self.targets]),
        ):
            if len(set(names)) != len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise HywuError(f"The {kind} name {twice!r} occurs more than once in the LoRA spec.")

    @property
    def scale(self) -> float:
        """The factor on B @ A."""
        return self.alpha / self.rank

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """All targets in band, layer and module order."""
        return tuple(target for band in self.bands for target in band.targets)

    @property
    def n_parameters(self) -> int:
        """How many numbers one adapter has."""
        return sum(self.rank * (t.d_in + t.d_out) * (t.experts or 1) for t in self.targets)

    @classmethod
    def from_module(
        cls,
        model: nn.Module,
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        rank: int = 16,
        alpha: float = 16.0,
    ) -> LoraSpec:
        """Find the targets of any torch module.

        include, exclude: shell patterns ("transformer_blocks.*.attn.*") matched against the whole target
            name, or compiled regular expressions searched in it; one or several. Without `include`, all
            linears inside ModuleLists are adapted: input, output and embedding projections outside the
            layers are left alone.

        The outermost ModuleList is the layer axis; inner ones stay in the module path (`attn.to_out.0`).
        Children that differ in their adapted modules or dims are split into several bands (`blocks:0`,
        `blocks:1`). Raises `HywuError` if nothing is left to adapt.
        """
        included, excluded = _matcher(include), _matcher(exclude)
        lists: dict[str, dict[int, list[ModuleShape]]] = {}
        loose: list[ModuleShape] = []
        for name, linear, list_path in _linears(model):
            wanted = list_path is not None if included is None else included(name)
            if not wanted or (excluded is not None and excluded(name)):
                continue
            if list_path is None:
                loose.append(ModuleShape(name, linear.in_features, linear.out_features))
                continue
            index, _, inside = name[len(list_path) + 1 if list_path else 0 :].partition(".")
            layers = lists.setdefault(list_path, {})
            layers.setdefault(int(index), []).append(
                ModuleShape(inside, linear.in_features, linear.out_features)
            )
        bands = [band for path, layers in lists.items() for band in _bands(path, layers)]
        if loose:
            bands.append(Band("(outside the layers)", 1, tuple(loose), path=""))
        if not bands:
            raise HywuError(
                f"No linear layer of {type(model).__name__} is selected by include={include!r}, "
                f"exclude={exclude!r}; patterns match whole module paths such as 'blocks.0.attn.to_q'."
            )
        return cls(tuple(bands), rank, alpha)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its inverse."""
        bands = [
            {
                "name": band.name,
                "path": band.path,
                "layers": list(band.layers),
                "modules": [
                    {"name": m.name, "d_in": m.d_in, "d_out": m.d_out}
                    | ({"experts": m.experts} if m.experts else {})
                    for m in band.modules
                ],
            }
            for band in self.bands
        ]
        return {"rank": self.rank, "alpha": self.alpha, "bands": bands}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LoraSpec:
        """Read what `to_dict` wrote. Raises `HywuError` if a field is missing or of the wrong kind."""
        try:
            bands = tuple(
                Band(
                    name=str(band["name"]),
                    n_layers=len(band["layers"]),
                    modules=tuple(
                        ModuleShape(
                            str(m["name"]), int(m["d_in"]), int(m["d_out"]), _optional_int(m.get("experts"))
                        )
                        for m in band["modules"]
                    ),
                    layers=tuple(int(layer) for layer in band["layers"]),
                    path=str(band["path"]),
                )
                for band in data["bands"]
            )
            return cls(bands, int(data["rank"]), float(data["alpha"]))
        except HywuError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise HywuError(f"This is not a LoRA spec: {error!r} while reading its fields.") from error

    def describe(self) -> str:
        """A few lines for people: bands, layers, modules and sizes."""
        lines = [
            f"rank {self.rank}, alpha {self.alpha:g}, {len(self.targets)} targets, "
            f"{self.n_parameters:,} parameters"
        ]
        for band in self.bands:
            lines.append(f"  {band.name}: {band.n_layers} layers x {len(band.modules)} modules")
            for m in band.modules:
                experts = f" x {m.experts} experts" if m.experts else ""
                lines.append(f"    {m.name or '(the layer itself)'}  {m.d_in} -> {m.d_out}{experts}")
        return "\n".join(lines)


def is_linear(module: nn.Module) -> bool:
    """Whether a low-rank update fits: nn.Linear, and whatever else (quantised) has its two feature counts."""
    return isinstance(getattr(module, "in_features", None), int) and isinstance(
        getattr(module, "out_features", None), int
    )


def _linears(
    module: nn.Module, name: str = "", list_path: str | None = None
) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Yield (path, linear, path of the outermost ModuleList or None) in the order of registration."""
    if is_linear(module):
        yield name, module, list_path
        return  # a wrapped linear (quantised, LoRA) is one target: its inner ones are its own business
    if isinstance(module, nn.MultiheadAttention):
        return  # its fused kernel reads the projections' weights and never calls their forward
    if list_path is None and isinstance(module, nn.ModuleList):
        list_path = name
    for child_name, child in module.named_children():
        yield from _linears(child, f"{name}.{child_name}" if name else child_name, list_path)


def _bands(path: str, layers: Mapping[int, list[ModuleShape]]) -> Iterator[Band]:
    alike: dict[tuple[ModuleShape, ...], list[int]] = {}
    for index, modules in layers.items():
        alike.setdefault(tuple(modules), []).append(index)
    for number, (modules, indices) in enumerate(alike.items()):
        name = path if len(alike) == 1 else f"{path}:{number}"
        yield Band(name, len(indices), modules, tuple(indices), path=f"{path}.{{}}" if path else "{}")


def _matcher(patterns: Patterns | None):
    if patterns is None:
        return None
    several = [patterns] if isinstance(patterns, (str, re.Pattern)) else list(patterns)

    def matches(name: str) -> bool:
        return any(
            fnmatchcase(name, pattern) if isinstance(pattern, str) else pattern.search(name) is not None
            for pattern in several
        )

    return matches


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)
