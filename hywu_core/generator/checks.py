"""Tensors from a file against what its config describes: one sentence for whatever is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import HywuError

Shapes = Mapping[str, Sequence[int]]


def require_same_tensors(where: object, found: Shapes, expected: Shapes) -> None:
    """HywuError when the shapes in `where` lack a tensor, have one too many, or have another form."""
    if missing := expected.keys() - found.keys():
        raise HywuError(f"{where} lacks {some(missing)} of the {len(expected)} tensors its config describes.")
    if unexpected := found.keys() - expected.keys():
        raise HywuError(
            f"{where} has {some(unexpected)} beside the {len(expected)} tensors its config describes."
        )
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            raise HywuError(
                f"{where} contradicts its config: {name} has the shape {tuple(found[name])} "
                f"instead of {tuple(shape)}."
            )


def require_finite(tensor: Tensor, name: str, what: str) -> None:
    """HywuError, a sentence that starts with `what`, when a value is infinite or not a number."""
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # torch has no test of its own for codes of a float in one byte
    if not bool(torch.isfinite(tensor).all()):
        n_bad = int((~torch.isfinite(tensor)).sum())
        raise HywuError(f"{what} {n_bad} of the {tensor.numel()} values of {name} are not finite.")


def some(names: Iterable[str]) -> str:
    """The first of the names, and how many more there are."""
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if rest else first
