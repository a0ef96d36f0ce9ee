"""Gradient conflict between operations (paper 5.2, figure 9): where they would pull one shared LoRA.

Shapes: N draws of each operation, F numbers in a LoRA that can have a gradient, D of them after projection.

Every draw (crop, time, noise) is used for all operations. Gradients are taken of one edit at a time, all in
one backward pass: each row of the batch is given a copy of the LoRA of its own. They are taken at two points:

* start: A random, B zero. The backbone is still the frozen one and only B has a gradient, G A^T, a random
  projection of the gradient G of the frozen weight itself. No choice in training enters.
* shared: the same LoRA after it was trained on all operations at once. Now the frozen backbone's faults that
  all operations have in common are mended, and what is left is what they disagree about.

Only angles are kept: gradients are scaled to length 1 before any mean, as a cosine is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

import numpy as np
import torch
from sklearn.random_projection import johnson_lindenstrauss_min_dim
from torch import Tensor
from tqdm import tqdm

from ..backbones.embedded import EmbeddedBackbone
from ..data.photo_ops import OPS
from ..lora import Adapter, LoraSpec
from ..train.objective import sample_times
from .cosines import analyse
from .draws import Draws, EditMaker, Edits, row_losses
from .frame import Result, Study, StudyConfig, option
from .gradients_shown import figure, report
from .lora_vectors import projection_of
from .optimised import fresh_adapter, optimise
from .work import Work

_ROWS = 25  # edits in one backward pass


@dataclass(frozen=True)
class GradientsConfig(StudyConfig):
    """How many gradients, of what, and how the shared LoRA is trained."""

    operations: int = option(len(OPS), "how many of the operations, from the first")
    samples: int = option(200, "draws, the same for every operation", quick=8)
    pixels: int = option(96, "side of the crops")
    rank: int = option(4, "of the LoRA")
    components: int = option(5760, "dimensions to which a gradient is projected at random", quick=2048)
    shared_samples: int = option(200, "of these draws, how many also at the shared LoRA", quick=8)
    shared_steps: int = option(200, "training steps of the shared LoRA", quick=12)
    shared_batch: int = option(32, "edits in one of these steps", quick=16)
    shared_lr: float = option(2e-3, "highest learning rate of these steps")
    clusters: int = option(6, "of operations")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("rank", "components", "shared_steps", "shared_batch", "clusters")
        self.require_between("operations", self.clusters + 1, len(OPS))
        self.require_between("samples", 2, 10_000)
        self.require_between("shared_samples", 2, self.samples)
        self.require_rate("shared_lr")

    @property
    def names(self) -> list[str]:
        """The operations."""
        return list(OPS)[: self.operations]


class Projection(Protocol):
    """A fitted random projection, as sklearn's."""

    def transform(self, X: np.ndarray) -> np.ndarray:
        """(N, F) to (N, D)."""
        ...


def row_gradients(backbone: EmbeddedBackbone, shared: Adapter, edits: Edits) -> tuple[Tensor, Tensor]:
    """The gradient (N, F) of each edit's loss at a shared LoRA of batch 1, and the losses (N,).

    A's gradient is left out where all of B is zero: it would be zero.
    """
    own = shared.detach().map(lambda x: x.expand(len(edits), -1, -1).clone())
    moving = [B for _, B in own.values()]
    if not starts_at_zero(shared):
        moving += [A for A, _ in own.values()]
    for tensor in moving:
        tensor.requires_grad_()
    losses = row_losses(backbone, own, edits)
    gradients = torch.autograd.grad(losses.sum(), moving)
    return torch.cat([g.flatten(1) for g in gradients], dim=1), losses.detach()


def starts_at_zero(adapter: Adapter) -> bool:
    """Whether all of B is zero, so that A has no gradient."""
    return not any(bool(B.any()) for _, B in adapter.values())


def measure(
    backbone: EmbeddedBackbone, shared: Adapter, edits: Edits, projection: Projection
) -> dict[str, Tensor]:
    """Projected gradients of unit length (N, D) in float16, their norms before that (N,), the losses (N,)."""
    found: list[tuple[Tensor, ...]] = []
    for start in range(0, len(edits), _ROWS):
        gradients, losses = row_gradients(backbone, shared, edits.rows(slice(start, start + _ROWS)))
        projected = torch.from_numpy(projection.transform(gradients.cpu().numpy()))
        unit = torch.nn.functional.normalize(projected, dim=1)
        found.append((unit.half(), gradients.norm(dim=1).cpu(), losses.cpu()))
    return dict(zip(("unit", "norm", "loss"), map(torch.cat, zip(*found, strict=True)), strict=True))


def _n_moving(shared: Adapter) -> int:
    """F: how many numbers of a LoRA `row_gradients` gives the gradient of."""
    still = starts_at_zero(shared)
    return sum(B.numel() + (0 if still else A.numel()) for A, B in shared.values())


def run(config: GradientsConfig, work: Work) -> Result:
    """Take the gradients at both points, operation by operation, then compare them."""
    taker = _Taker(config, work)
    losses, shared = taker.shared_adapter()
    points = {"start": taker.start, "shared": shared}
    taken = taker.take(points)
    tenth = max(1, config.shared_steps // 10)
    return {
        "operations": config.names,
        "families": [OPS[name].family for name in config.names],
        "splits": [OPS[name].split for name in config.names],
        "lora_parameters": taker.spec.n_parameters,
        "shared_lora": {
            "first_losses": float(losses[:tenth].mean()),
            "last_losses": float(losses[-tenth:].mean()),
        },
        "projection": work.unit("projection", make=taker.distortion),
        "points": {
            name: work.unit(
                "analysis", name, make=partial(analyse, config.names, part, config.clusters, config.seed)
            )
            for name, part in taken.items()
        },
    }


class _Taker:
    """The models, the draws, and the units of work made of them."""

    def __init__(self, config: GradientsConfig, work: Work) -> None:
        self.config, self.work = config, work
        device = config.computes_on
        self.backbone, self.maker = EmbeddedBackbone.load(device=device), EditMaker(device)
        self.spec = LoraSpec.from_module(self.backbone.transformer, rank=config.rank, alpha=config.rank)
        self.start = fresh_adapter(self.spec, 1, config.seed, self.maker.device)
        self.draws = Draws.make(config.samples, config.pixels, "train", config.seed)

    def shared_adapter(self) -> tuple[Tensor, Adapter]:
        """The losses of training one LoRA for all operations, and the LoRA."""
        kept = self.work.tensors("shared LoRA", make=self._train_shared)
        factors = {
            t.name: tuple(kept[f"{t.name}.{end}"].to(self.maker.device) for end in "AB")
            for t in self.spec.targets
        }
        return kept["losses"], Adapter(factors, self.spec.scale)

    def _train_shared(self) -> dict[str, Tensor]:
        """Optimise it on other draws than those that gradients are taken at."""
        config = self.config
        draws = Draws.make(max(2, config.shared_batch // 4), config.pixels, "train", config.seed + 1)
        names = tqdm(config.names, desc="edits for the shared LoRA", unit="operation")
        pool = Edits.cat([self.maker.edits(name, draws) for name in names])
        generator = torch.Generator().manual_seed(config.seed + 2)

        def edits_of(step: int) -> Edits:
            batch = pool.rows(torch.randint(len(pool), (config.shared_batch,), generator=generator))
            noise = torch.randn(batch.noise.shape, generator=generator)
            return batch.at(sample_times(len(batch), generator), noise)

        adapter, losses = optimise(
            self.backbone, self.start, edits_of, config.shared_steps, config.shared_lr, "the shared LoRA"
        )
        factors = {
            f"{name}.{end}": x for name, pair in adapter.items() for end, x in zip("AB", pair, strict=True)
        }
        return factors | {"losses": torch.tensor(losses)}

    def take(self, points: dict[str, Adapter]) -> dict[str, list[dict[str, Tensor]]]:
        """`measure` of every operation at every point; its edits are made once, and only if needed."""
        config = self.config
        projections = {
            point: projection_of(_n_moving(shared), config.components, config.seed)
            for point, shared in points.items()
        }
        rows = {"start": slice(None), "shared": slice(config.shared_samples)}
        taken: dict[str, list[dict[str, Tensor]]] = {point: [] for point in points}
        for name in tqdm(config.names, desc="gradients", unit="operation"):
            edits = cache(partial(self.maker.edits, name, self.draws))
            for point, shared in points.items():
                make = partial(self._measured, shared, edits, rows[point], projections[point])
                taken[point].append(self.work.tensors(point, name, make=make))
        return taken

    def _measured(
        self, shared: Adapter, edits: Callable[[], Edits], rows: slice, projection: Projection
    ) -> dict[str, Tensor]:
        return measure(self.backbone, shared, edits().rows(rows), projection)

    def distortion(self) -> Result:
        """What the projection does to cosines: as promised, and as measured on gradients at the start."""
        config = self.config
        names = config.names[:: max(1, config.operations // 24)]
        edits = Edits.cat([self.maker.edits(name, self.draws.first(1)) for name in names])
        gradients = row_gradients(self.backbone, self.start, edits)[0].cpu().numpy()
        projection = projection_of(gradients.shape[1], config.components, config.seed)
        errors = _cosines(projection.transform(gradients)) - _cosines(gradients)
        errors = errors[np.triu_indices(len(errors), 1)]
        all_gradients = config.samples * config.operations
        return {
            "from": gradients.shape[1],
            "to": projection.n_components_,
            "pairs_measured": len(errors),
            "cosine_error_rms": float(np.sqrt(np.mean(errors**2))),
            "cosine_error_largest": float(np.abs(errors).max()),
            "squared_distance_error_promised": _promised(all_gradients, projection.n_components_),
        }


def _cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def _promised(n_points: int, components: int) -> float:
    """The smallest error of squared distances that Johnson and Lindenstrauss's lemma allows all pairs."""
    errors = np.arange(0.01, 1.0, 0.01)
    return float(
        next((e for e in errors if johnson_lindenstrauss_min_dim(n_points, eps=e) <= components), 1.0)
    )


STUDY = Study(GradientsConfig, run, report, figure)
