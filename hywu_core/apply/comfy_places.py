"""Where an adapter's targets live in a ComfyUI model. Only ComfyUI can import this module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import comfy.lora
from comfy.model_base import BaseModel
from torch import Tensor, nn

from .fused import Convolution

# Under which ComfyUI's tables know a backbone's own module names; kohya's have underscores for dots.
_PREFIXES = ("transformer.", "diffusion_model.", "")
_FLAT_PREFIX = "lora_unet_"

_tables: WeakKeyDictionary[BaseModel, dict[str, Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Place:
    """Where a target lives in a ComfyUI model.

    name: what ComfyUI's table calls it.  module: path of the module from the BaseModel.
    start, length: the output rows that are the target's, of the module's d_out.
    d_in: of a convolution, channels times kernel.
    permute: how ComfyUI reordered the target's rows when it converted the weights, if it did.
    convolution: how the module reads its input, if it is one.
    passed_by: which modules it is one of, if a side path on those is left out; empty if it is not.
    """

    name: str
    module: str
    start: int
    length: int
    d_in: int
    d_out: int
    permute: Callable[[Tensor], Tensor] | None
    convolution: Convolution | None = None
    passed_by: str = ""

    @property
    def fused(self) -> bool:
        """Whether the module has other rows too."""
        return self.length < self.d_out


def key_table(model: BaseModel) -> dict[str, Any]:
    """ComfyUI's own table from LoRA names to weights of this model, made once for each model."""
    if model not in _tables:
        _tables[model] = comfy.lora.model_lora_keys_unet(model, {})
    return _tables[model]


def find_places(model: BaseModel, names: Sequence[str]) -> dict[str, Place]:
    """The places of those target names that the model has, by the table stock LoRA loaders use."""
    table = key_table(model)
    places = {}
    for target in names:
        name = next((name for name in _names(target) if name in table), None)
        if name is None:
            continue
        key, rows, permute = (
            (table[name], None, None) if isinstance(table[name], str) else (*table[name], None)[:3]
        )
        path = key.removesuffix(".weight")
        try:
            module = find_module(model, path)
        except AttributeError:  # the table is by the model's sizes: Chroma's blocks have no modulation, say
            continue
        if (dims := _dims(module)) is None:
            continue
        d_in, d_out, convolution = dims
        _axis, start, length = rows or (0, 0, d_out)  # the table slices along rows only
        passed_by = _passed_by(model, path, module)
        places[target] = Place(name, path, start, length, d_in, d_out, permute, convolution, passed_by)
    return places


def _names(target: str) -> Iterator[str]:
    yield from (prefix + target for prefix in _PREFIXES)
    yield _FLAT_PREFIX + target.replace(".", "_")


def _dims(module: nn.Module) -> tuple[int, int, Convolution | None] | None:
    """(d_in, d_out) of a linear or an ordinary convolution, None for anything else."""
    if isinstance(getattr(module, "out_features", None), int):
        return module.in_features, module.out_features, None
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or module.groups != 1:
        return None
    if module.padding_mode != "zeros":
        return None
    how = Convolution(module.kernel_size, module.stride, module.padding, module.dilation)
    return module.in_channels * prod(how.kernel), module.out_channels, how


def find_module(root: nn.Module, path: str) -> nn.Module:
    """The module at a path, also below modules that torch.compile has wrapped; faster than get_submodule.

    Raises AttributeError where there is none.
    """
    module = root
    for part in path.split("."):
        children = module._modules
        while part not in children and "_orig_mod" in children:
            module = children["_orig_mod"]
            children = module._modules
        module = children[part] if part in children else getattr(module, part)
    while "_orig_mod" in module._modules:
        module = module._modules["_orig_mod"]
    return module


def _passed_by(root: nn.Module, path: str, module: nn.Module) -> str:
    """Which modules it is one of, if a side path on those is left out; empty if it is not.

    - ComfyUI 0.33's `linear_input_act` hands INT8 weights to a kernel that takes in the activation before
      them (in the MLPs of Wan, LTX and MiniMax); it is called by a module above.
    - Some models have ComfyUI run a part of them on the text once, before the first model call (Anima's
      adapter, the connectors of LTX with sound, MiniMax's refiner).
    """
    if getattr(getattr(module, "weight", None), "_layout_cls", None) == "TensorWiseINT8Layout":
        above = [path.rsplit(".", levels)[0] for levels in (1, 2)]
        forwards = (type(find_module(root, parent)).forward for parent in above)
        if any("linear_input_act" in forward.__code__.co_names for forward in forwards):
            return "INT8 layers whose kernel takes in the activation before them"
    if _before_sampling(root, path):
        return "layers that ComfyUI runs on the text before it samples"
    return ""


def _before_sampling(root: nn.Module, path: str) -> bool:
    """Whether the module is in what the model runs on the text before the first call."""
    top, _, part = path.partition(".")
    model = find_module(root, top)
    preprocess = getattr(type(model), "preprocess_text_embeds", None)
    part = part.split(".")[0]
    if preprocess is None or part not in preprocess.__code__.co_names:
        return False
    # LTX says of its own projections whether they come before the connectors, or are left to every call.
    return "caption_projection" not in part or getattr(model, "caption_proj_before_connector", True)
