"""Ulysses: a diffusers transformer reads the images and words of its rows together with its team.

diffusers cuts the tokens up at the transformer's entrance, exchanges heads for tokens around each attention,
and puts the tokens together again at its exit, differentiably. Every process of the team must be given the
same rows, with numbers of tokens and heads that the team divides.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import HywuError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def read_together(transformer: nn.Module, mesh: DeviceMesh) -> None:
    """Divide a transformer's tokens over the last dimension of a mesh ("team", "ring", "ulysses").

    Raises HywuError for a model, or a diffusers, that cannot; in a forward pass where tokens do not divide.
    """
    name, team = type(transformer).__name__, mesh.size(mesh.ndim - 1)
    try:
        from diffusers import ContextParallelConfig
    except ImportError as error:
        raise HywuError("Ulysses needs diffusers 0.36 or newer.") from error
    if getattr(transformer, "_cp_plan", None) is None:
        raise HywuError(f"diffusers has no plan to divide the images of {name}; leave out ulysses.")
    try:
        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=team, mesh=mesh))
    except (ArithmeticError, NotImplementedError, RuntimeError, ValueError) as error:
        raise HywuError(f"diffusers cannot divide the images of {name} here: {error}.") from error
    forward = transformer.forward

    @wraps(forward)
    def divided(*args: Any, **kwargs: Any) -> Any:
        try:
            out = forward(*args, **kwargs)
        except AssertionError as error:
            raise HywuError(f"{team} processes cannot divide the tokens of these rows: {error}.") from error
        sample: Tensor = out[0]
        # Each process gets the gradients of its own tokens, and all have the same loss: where gradients are
        # averaged over the processes, those of a team are to be added.
        if sample.requires_grad:
            sample.register_hook(lambda gradient: gradient * team)
        return out

    transformer.forward = divided


def read_alone(transformer: nn.Module) -> None:
    """Undo `read_together`."""
    from diffusers.hooks.context_parallel import remove_context_parallel

    transformer.forward = transformer.forward.__wrapped__
    remove_context_parallel(transformer, transformer._cp_plan)
    transformer._parallel_config = None
    for module in transformer.modules():
        processor = getattr(module, "processor", None)
        if getattr(processor, "_parallel_config", None) is not None:
            processor._parallel_config = None
