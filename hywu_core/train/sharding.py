"""Cut a module's weights up over processes (FSDP2), put them together again, recompute its activations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts of a model: the members of its outermost ModuleLists that can be called."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (each for each in child if type(each).forward is not nn.Module.forward)
        else:
            yield from blocks(child)


def can_shard(module: nn.Module) -> bool:
    """Whether a module's weights are plain numbers; quantised ones stay whole on each process."""
    return all(
        type(p) is nn.Parameter and type(p.data) is torch.Tensor and p.is_floating_point()
        for p in module.parameters()
    )


def shard(module: nn.Module, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Cut up every block of a module, and then the rest of it, over the last dimension of the mesh.

    The module must be called as a whole, through its forward. Gradients are averaged over the whole mesh, in
    float32. dtype: of the weights while they are whole, and so of the computation; None: as they are kept.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Inputs are not cast: tables of rotations among them need their float32.
    policy = MixedPrecisionPolicy(dtype, torch.float32 if dtype else None, cast_forward_inputs=False)
    # Nothing here is written into in place while gradients are recorded.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    for part in (*blocks(module), module):
        fully_shard(part, mesh=mesh, mp_policy=policy)


def reshard(module: nn.Module) -> None:
    """Let go of weights that are whole: a pass without gradients leaves some so, in another precision."""
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def unshard(module: nn.Module, keep: bool) -> None:
    """Make a module what it was before `shard`, with the weights of now; called by all processes of the mesh.

    keep: on the others the weights stay in pieces, and the module is of no further use.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor

    reshard(module)
    for part in list(module.modules()):
        for name, parameter in list(part.named_parameters(recurse=False)):
            if isinstance(parameter.data, DTensor):
                whole = parameter.detach().full_tensor()
                if keep:
                    setattr(part, name, nn.Parameter(whole, requires_grad=parameter.requires_grad))
    for part in list(module.modules()):
        if isinstance(part, FSDPModule):
            state = fully_shard.state(part)
            state._pre_forward_hook_handle.remove()
            state._post_forward_hook_handle.remove()
            part.__class__ = type(part).__mro__[2]  # FSDPX(FSDPModule, X)


def recompute(block: nn.Module) -> None:
    """Let a block's activations be computed again in the backward pass instead of being stored.

    Its forward is shadowed in the instance, so that no name changes and FSDP's work is done once only.
    """
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)
