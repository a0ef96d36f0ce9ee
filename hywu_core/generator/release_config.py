"""The released generator's `config.json` in our terms, and back.

It describes one band of `num_base_model_layers` layers in the flat token layout, without output gains. The
targets are called `prefix` + layer + "." + a key of `pg_mapping`; under a key of type "grouped",
`num_experts` equal experts share each of the `sub_weights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from ..errors import HywuError
from ..lora import LoraSpec
from ..lora.spec import Band, ModuleShape
from ..tokens import TokenLayout
from .checks import some
from .config import MOST_LAYERS, GeneratorConfig
from .model import ParameterGenerator

MODEL_TYPE = "parameter_generator"

_SIZES = (
    *("token_dim", "rank", "input_dim", "dim_accumulation", "d_model", "head_dim"),
    *("num_base_model_layers", "output_dim", "num_pg_layers"),
)
_LARGEST = 2**20  # of any size, far beyond every real one: a damaged number must not fill the memory


class Description(NamedTuple):
    """What a release's config says, in our terms; the arguments of `ParameterGenerator`."""

    config: GeneratorConfig
    spec: LoraSpec
    layout: TokenLayout


def read_config(values: Mapping[str, Any]) -> Description:
    """The fields of a release's config.json in our terms; HywuError for a missing one or one of no sense."""
    if values.get("model_type") != MODEL_TYPE:
        raise HywuError(f"its model_type is {values.get('model_type')!r} instead of {MODEL_TYPE!r}.")
    size = {name: _size(values, name) for name in _SIZES}
    for name in ("num_pg_layers", "num_base_model_layers"):
        if size[name] > MOST_LAYERS:
            raise HywuError(f"{name} is {size[name]}; it must be an integer from 1 to {MOST_LAYERS}.")
    alpha, prefix = values.get("alpha"), values.get("prefix")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise HywuError(f"alpha is {alpha!r}; it must be a number.")
    if not isinstance(prefix, str) or "{}" in prefix:
        raise HywuError(f"prefix is {prefix!r}; it must be the path of the layers, 'model.layers.' say.")
    if size["output_dim"] != size["token_dim"]:
        raise HywuError(
            f"output_dim is {size['output_dim']} and token_dim {size['token_dim']}; both are a token's width."
        )
    if size["d_model"] % size["head_dim"]:
        raise HywuError(f"d_model {size['d_model']} is no multiple of head_dim {size['head_dim']}.")
    config = GeneratorConfig(
        condition_dim=size["input_dim"],
        d_model=size["d_model"],
        n_layers=size["num_pg_layers"],
        n_heads=size["d_model"] // size["head_dim"],
        accumulation=size["dim_accumulation"],
        output_gain="none",
    )
    modules = tuple(_read_mapping(values.get("pg_mapping")))
    # A module's place is that of the first key its name contains: a key 'mlp' draws 'shared.mlp' to itself.
    names = [module.name for module in modules]
    modules = tuple(
        sorted(modules, key=lambda module: next(i for i, name in enumerate(names) if name in module.name))
    )
    band = Band(prefix.rstrip("."), size["num_base_model_layers"], modules, path=prefix + "{}")
    return Description(config, LoraSpec((band,), size["rank"], alpha), TokenLayout("flat", size["token_dim"]))


def write_config(generator: ParameterGenerator, dtype: torch.dtype) -> dict[str, Any]:
    """The inverse of `read_config`; HywuError for a generator that the format cannot express."""
    config, spec, layout = generator.config, generator.spec, generator.layout
    band = spec.bands[0]
    mapping: dict[str, Any] = {}
    for module in band.modules:
        dims = {"lora_A_dim": module.d_in, "lora_B_dim": module.d_out}
        if module.experts is None:
            mapping[module.name] = dims
            continue
        group, _, name = module.name.rpartition(".")
        entry = {"type": "grouped", "num_experts": module.experts, "sub_weights": {}}
        mapping.setdefault(group, entry).setdefault("sub_weights", {})[name] = dims
    values = {
        "architectures": ["ParameterGenerator"],
        "model_type": MODEL_TYPE,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "token_dim": layout.segment,
        "rank": spec.rank,
        "alpha": int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha,
        "input_dim": config.condition_dim,
        "dim_accumulation": config.accumulation,
        "d_model": config.d_model,
        "head_dim": config.head_dim,
        "num_base_model_layers": band.n_layers,
        "output_dim": layout.segment,
        "num_pg_layers": config.n_layers,
        "prefix": band.path.removesuffix("{}"),
        "pg_mapping": mapping,
    }
    try:
        expressed = read_config(values)
    except HywuError as error:
        raise HywuError(f"The release's format cannot express this generator: {error}") from error
    for name, theirs, ours in zip(Description._fields, expressed, (config, spec, layout), strict=True):
        if theirs != ours:
            raise HywuError(
                f"The release's format cannot express this generator's {name}: it has one band from layer 0 "
                "on, the flat token layout, and the config of the paper without output gains; "
                "use save_generator."
            )
    return values


def _read_mapping(mapping: Any) -> Iterator[ModuleShape]:
    try:
        for key, entry in mapping.items():
            if entry.get("type") == "grouped":
                experts = _size(entry, "num_experts")
                for name, dims in entry["sub_weights"].items():
                    yield _module(f"{key}.{name}", dims, experts)
            else:
                yield _module(key, entry, None)
    except (AttributeError, KeyError) as error:
        raise HywuError(f"pg_mapping is not a table of modules and their dims ({error}).") from error


def _module(name: str, dims: Mapping[str, Any], experts: int | None) -> ModuleShape:
    if unknown := dims.keys() - {"lora_A_dim", "lora_B_dim"}:
        raise HywuError(f"pg_mapping gives {name} the unknown field {some(unknown)}.")
    return ModuleShape(name, _size(dims, "lora_A_dim", name), _size(dims, "lora_B_dim", name), experts)


def _size(values: Mapping[str, Any], name: str, of: str = "") -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        place = f"{name} of {of}" if of else name
        raise HywuError(f"{place} is {value!r}; it must be an integer from 1 to {_LARGEST}.")
    return value
