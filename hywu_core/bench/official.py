"""The authors' own generator, from a copy of their repository that somebody has: imported, never included.

Only `wu.config`, `wu.model`, `wu.tokenizer` and `wu.generator` are imported; their pipeline, which needs much
more, is not.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import HywuError
from ..generator import ParameterGenerator
from ..generator.release import release_tensors
from ..lora import Adapter

_PACKAGE = "wu"


def build(repository: Path, config: Mapping[str, Any], ours: ParameterGenerator) -> nn.Module:
    """The authors' generator of a config, with the weights of ours; on the same device, in the same dtype.

    Raises HywuError where the repository, or a package that its code needs, is missing.
    """
    modules = _import(repository)
    values = {name: value for name, value in config.items() if name != "model_type"}
    with torch.device("meta"):
        theirs = modules.ParameterGenerator(modules.ParameterGeneratorConfig(**values))
    theirs.load_state_dict(release_tensors(ours), assign=True)
    return theirs.eval()


def compare(ours: Adapter, theirs: Mapping[str, Tensor]) -> float:
    """The largest difference of any value, over the largest value of theirs; HywuError for other targets."""
    names = {name: name.rsplit(".", 1) for name in theirs if name != "scale"}
    if {target for target, _ in names.values()} != set(ours):
        raise HywuError("The two generators do not write the same targets.")
    differences, sizes = [], []
    for name, (target, leaf) in names.items():
        expected = theirs[name].float()
        differences.append((ours[target][leaf == "lora_B"].float() - expected).abs().max())
        sizes.append(expected.abs().max())
    # Stacked, because Python's max() would pass over what is not a number.
    return float(torch.stack(differences).max() / torch.stack(sizes).max())


def _import(repository: Path) -> ModuleType:
    """Their `wu.generator` module (which holds both classes), without running `wu/__init__.py`."""
    folder = repository / _PACKAGE
    if not (folder / "generator.py").is_file():
        raise HywuError(
            f"{repository} is no copy of the official repository: it has no {_PACKAGE}/generator.py."
        )
    if getattr(sys.modules.get(_PACKAGE), "__path__", None) != [str(folder)]:
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(folder)]
        for name in [n for n in sys.modules if n == _PACKAGE or n.startswith(f"{_PACKAGE}.")]:
            del sys.modules[name]
        sys.modules[_PACKAGE] = package
    try:
        return importlib.import_module(f"{_PACKAGE}.generator")
    except ImportError as error:
        raise HywuError(f"The official code cannot be imported here: {error}.") from error
