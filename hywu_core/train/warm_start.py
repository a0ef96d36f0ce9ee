"""Begin a training run where another ended: the weights of a generator file, with a fresh optimiser.

And end it nearer there, which keeps more of what was known (WiSE-FT, Wortsman et al., arXiv 2109.01903).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import HywuError
from ..generator import ParameterGenerator, load_generator
from ..generator.quantize import quantization_of
from ..pipeline import check_embedded


def warm_start(module: ParameterGenerator, path: str | Path) -> ParameterGenerator:
    """Copy the weights of a generator file into `module`, in place; returns that generator.

    Raises HywuError when the file is missing, damaged, quantised or for another backbone, and when its
    sizes or targets differ, naming both.
    """
    start = load_generator(path)
    check_embedded(start)
    if kind := quantization_of(start):
        raise HywuError(f"{path} is quantised to {kind}; training begins with a generator in full precision.")
    if differences := list(_differences(start, module)):
        raise HywuError(f"{path} is not the generator of this recipe: {'; '.join(differences)}.")
    module.load_state_dict(start.state_dict())
    return start


@torch.no_grad()
def lean_back(module: ParameterGenerator, start: Mapping[str, Tensor], share: float) -> None:
    """Let `module` be `share` of the weights that it began with, and the rest of its own."""
    for name, weight in module.state_dict().items():
        weight.lerp_(start[name].to(weight), share)


def _differences(start: ParameterGenerator, module: ParameterGenerator) -> Iterator[str]:
    """Each as "name is A, not B"; different targets as one sentence, for they are many."""
    for part in ("config", "layout"):
        theirs, ours = getattr(start, part).to_dict(), getattr(module, part).to_dict()
        for name, value in ours.items():
            if theirs[name] != value:
                yield f"its {name} is {theirs[name]}, not {value}"
    for name in ("rank", "alpha"):
        if (theirs := getattr(start.spec, name)) != (ours := getattr(module.spec, name)):
            yield f"its {name} is {theirs}, not {ours}"
    if start.spec.bands != module.spec.bands:
        yield f"it writes {len(start.spec.targets)} targets that are not the {len(module.spec.targets)} here"
