"""LoRAs as points: flattened as the paper does it, and by what they do to the weights; both projected.

Shapes: P adapters, r rank, D dimensions after projection.

The same update B A has many pairs (A, B), so that flattened factors of LoRAs of different origin can be far
apart and mean the same. The updates themselves have no such freedom, but many more numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.random_projection import SparseRandomProjection
from torch import Tensor
from torch.nn import functional as F

from ..lora import Adapter, LoraSpec

_CHUNK = 8  # adapters whose updates are written out together


def projection_of(
    n_features: int, components: int, seed: int, density: float | str = "auto"
) -> SparseRandomProjection:
    """A fitted sparse random projection (Li et al. 2006); it needs no data, only their width.

    Of the seed the last 32 bits count, as many as scikit-learn takes.
    """
    components, seed = min(components, n_features), seed % 2**32
    projection = SparseRandomProjection(components, density=density, random_state=seed)
    return projection.fit(np.zeros((1, n_features), dtype=np.float32))


@dataclass(frozen=True)
class LoraVectors:
    """The two random projections of the LoRAs of a spec."""

    factors: SparseRandomProjection
    updates: dict[str, SparseRandomProjection]

    @classmethod
    def of(cls, spec: LoraSpec, components: int, seed: int) -> LoraVectors:
        """Fit both. A sum of independent projections of the targets is one of all of them side by side."""
        density = (
            sum(target.d_in * target.d_out for target in spec.targets) ** -0.5
        )  # Li et al.'s, of the whole
        updates = {
            target.name: projection_of(target.d_in * target.d_out, components, seed + 1 + number, density)
            for number, target in enumerate(spec.targets)
        }
        return cls(projection_of(spec.n_parameters, components, seed), updates)

    def __call__(self, adapter: Adapter) -> dict[str, Tensor]:
        """ "factors" and "updates" (P, D), and the norms (P,) of the whole update before the projection."""
        chunks = [adapter.select(slice(i, i + _CHUNK)) for i in range(0, adapter.batch, _CHUNK)]
        found = [self._chunk(chunk.detach().to("cpu", torch.float32)) for chunk in chunks]
        return {key: torch.cat([part[key] for part in found]) for key in found[0]}

    def distortion(self, adapter: Adapter) -> dict[str, dict[str, float]]:
        """What the projections do to squared distances between a few adapters, as parts of them."""
        adapter = adapter.detach().to("cpu", torch.float32)
        flat = torch.cat([x.flatten(1) for pair in adapter.values() for x in pair], dim=1)
        update = torch.cat([(adapter.scale * (B @ A)).flatten(1) for A, B in adapter.values()], dim=1)
        projected = self(adapter)
        found = {}
        for kind, exact in (("factors", flat), ("updates", update)):
            errors = (torch.pdist(projected[kind]) / torch.pdist(exact)).square() - 1
            found[kind] = {"rms": float(errors.square().mean().sqrt()), "largest": float(errors.abs().max())}
        return found

    def _chunk(self, adapter: Adapter) -> dict[str, Tensor]:
        flat = torch.cat([x.flatten(1) for pair in adapter.values() for x in pair], dim=1)
        updates, squares = 0.0, torch.zeros(adapter.batch)
        for name, (A, B) in adapter.items():
            update = (adapter.scale * (B @ A)).flatten(1)
            squares += update.square().sum(1)
            projected = torch.from_numpy(self.updates[name].transform(update.numpy()))
            width = self.factors.n_components_  # a small target has fewer numbers than that
            updates = updates + F.pad(projected, (0, width - projected.shape[1]))
        factors = torch.from_numpy(self.factors.transform(flat.numpy()))
        return {"factors": factors.float(), "updates": updates.float(), "norm": squares.sqrt()}
