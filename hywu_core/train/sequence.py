"""Dynamic sequence parallelism (paper 3.7): a generator's positions divided over the processes of a team.

Shapes: B batch, L layers of a band, P positions of a layer, D model width; l, p are a process's part of L, P.

Between the two kinds of part lies one all-to-all, as DTensor makes it of a change of the sharded axis; the
parts of an axis that does not divide are those of `torch.chunk`, so that the last ones may be empty. Each
process reads the team's whole condition and ends with all tokens. Its gradients are then those of its own
positions for the sum of the team's losses: their mean over the team is that of the mean loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from ..generator.positions import Rotation
from ..generator.sequence import Sequence

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_LAYERS, _PLACES = 1, 2  # axes of x


class DividedSequence(Sequence):
    """The part of one process in a one-dimensional mesh, its team."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh

    def enter(self, x: Tensor) -> Tensor:
        """By slicing: in the backward pass the places of others count zero."""
        return x[:, :, self._own(x.shape[_PLACES])]

    def to_layers(self, x: Tensor, n_places: int) -> Tensor:
        """An all-to-all, forward and backward."""
        return self._moved(x, Shard(_PLACES), n_places, Shard(_LAYERS))

    def to_columns(self, x: Tensor, n_layers: int) -> Tensor:
        """An all-to-all, forward and backward."""
        return self._moved(x, Shard(_LAYERS), n_layers, Shard(_PLACES))

    def own_layers(self, table: Rotation) -> Rotation:
        """A slice."""
        own = self._own(len(table.cos))
        return Rotation(table.cos[own], table.sin[own])

    def leave(self, tokens: Tensor, n_layers: int) -> Tensor:
        """An all-gather; the gradients of all processes meet in a reduce-scatter."""
        whole = self._distributed(tokens, Shard(_LAYERS), n_layers).redistribute(placements=[Replicate()])
        return whole.to_local(grad_placements=[Partial()])

    def _moved(self, x: Tensor, before: Shard, length: int, after: Placement) -> Tensor:
        return self._distributed(x, before, length).redistribute(placements=[after]).to_local()

    def _distributed(self, x: Tensor, placement: Shard, length: int) -> DTensor:
        shape = list(x.shape)
        shape[placement.dim] = length
        stride = [1]
        for size in reversed(shape[1:]):
            stride.insert(0, stride[0] * size)
        return DTensor.from_local(
            x.contiguous(), self._mesh, [placement], run_check=False, shape=tuple(shape), stride=tuple(stride)
        )

    def _own(self, length: int) -> slice:
        each = -(-length // self._mesh.size())
        first = min(length, each * self._mesh.get_local_rank())
        return slice(first, min(length, first + each))
