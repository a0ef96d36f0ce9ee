"""The geometry of generated LoRAs (paper 5.4), and directly optimised ones beside them (5.5).

Shapes: N pairs of a crop and an instruction, n of them for each operation, D dimensions after projection.

Every operation is asked for, in held-out words, on the same crops of held-out photographs; the generator
writes a LoRA for each. Some of the pairs also get a LoRA that is optimised for it alone, from no effect on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..conditions.embedded import embedded_condition, image_tokens
from ..data.augment import is_chinese
from ..data.photo_ops import OPS
from ..generate import generate
from ..lora import Adapter
from ..pipeline import HywuPipeline
from ..train.objective import sample_times
from .draws import Draws, EditMaker, Edits, row_losses
from .frame import OfGenerator, Result, Study, option
from .geometry_page import write_page
from .geometry_shown import figure, report
from .lora_vectors import LoraVectors
from .neighbours import (
    agreement,
    clusters_of,
    compare,
    cosine_of,
    equality_of,
    retrieval,
    semantic_embeddings,
)
from .optimised import fresh_adapter, optimise
from .statistics import interval
from .work import Work

_ROWS = 32  # rows of one forward pass
THUMBNAIL = 48  # pixels
KINDS = ("factors", "updates")


@dataclass(frozen=True)
class GeometryConfig(OfGenerator):
    """How many LoRAs, how they are projected and clustered, and how some are optimised."""

    operations: int = option(len(OPS), "how many of the operations, from the first")
    crops: int = option(28, "crops of held-out photographs under every operation", quick=6)
    pixels: int = option(96, "side of the crops")
    steps: int = option(4, "sampling steps of the edits on the page", quick=2)
    components: int = option(5760, "dimensions to which a LoRA is projected at random", quick=512)
    clusters: int = option(8, "of the pairs, by words and picture")
    neighbours: int = option(10, "nearest LoRAs that are looked at", quick=4)
    perplexity: float = option(30.0, "of the t-SNE")
    optimised_crops: int = option(2, "crops whose pairs are also optimised directly", quick=1)
    optimised_every: int = option(1, "optimise for every so many-th operation", quick=6)
    optimised_steps: int = option(60, "steps of optimising", quick=20)
    optimised_lr: float = option(5e-3, "highest learning rate of these steps")
    optimised_checks: int = option(8, "noises at which losses are compared", quick=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("steps", "components", "optimised_every", "optimised_steps", "optimised_checks")
        self.require_between("operations", 2, len(OPS))
        self.require_between("crops", 2, 1000)
        self.require_between("clusters", 2, self.operations)
        self.require_between("neighbours", 1, self.crops * self.operations - 2)
        self.require_between("optimised_crops", 1, self.crops)
        self.require_between("perplexity", 1, self.crops * self.operations - 1)
        self.require_rate("optimised_lr")

    @property
    def names(self) -> list[str]:
        """The operations."""
        return list(OPS)[: self.operations]


def run(config: GeometryConfig, work: Work) -> Result:
    """Generate and optimise LoRAs, operation by operation, then look at how they lie."""
    maker = _Maker(config)
    parts = [
        work.tensors("generated", name, make=partial(maker.generated, name))
        for name in tqdm(config.names, desc="generating LoRAs", unit="operation")
    ]
    few = config.names[:: config.optimised_every]
    optimised = [
        work.tensors("optimised", name, make=partial(maker.optimised, name))
        for name in tqdm(few, desc="optimising LoRAs", unit="operation")
    ]
    points = {
        key: torch.cat([part[key] for part in parts]).numpy() for key in (*KINDS, "text", "image", "norm")
    }
    prompts = [maker.encoders.words(name, maker.draws) for name in config.names]
    where = {
        "operation": np.repeat(np.arange(config.operations), config.crops),
        "crop": np.tile(np.arange(config.crops), config.operations),
        "chinese": np.array([int(is_chinese(prompt)) for said in prompts for prompt in said]),
    }
    labels = {
        by: clusters_of(embedding, config.clusters, config.seed)
        for by, embedding in semantic_embeddings(points["text"], points["image"]).items()
    }
    maps = work.unit("maps", make=lambda: {kind: _map(points[kind], config) for kind in KINDS})
    result = {
        "operations": config.names,
        "families": [OPS[name].family for name in config.names],
        "pairs": config.operations * config.crops,
        "lora_parameters": maker.spec.n_parameters,
        "update_parameters": sum(t.d_in * t.d_out for t in maker.spec.targets),
        "generator": maker.pipeline.generator.provenance,
        "norm": interval(points["norm"]),
        "distance_errors": work.unit("distance errors", make=maker.distortion),
        "clusters": {by: _describe(found, where, config) for by, found in labels.items()},
        "neighbours": work.unit("neighbours", make=lambda: _neighbours(points, where, config)),
        "agreement": work.unit("agreement", make=lambda: _agreement(points, labels | where, config)),
        "optimised": work.unit("beside optimised", make=lambda: _beside(parts, optimised, config)),
        "points": {key: value.tolist() for key, value in where.items()}
        | {"clusters": {by: found.tolist() for by, found in labels.items()}}
        | maps,
    }
    write_page(work.out / "geometry.html", result, prompts, [part["pictures"] for part in parts])
    return result


class _Maker:
    """The models, the draws, and the LoRAs of an operation."""

    def __init__(self, config: GeometryConfig) -> None:
        self.config = config
        device = config.computes_on
        self.pipeline = HywuPipeline.from_embedded(config.generator, device)
        self.encoders = EditMaker(device)
        self.spec = self.pipeline.generator.spec
        self.draws = Draws.make(config.crops, config.pixels, "held_out", config.seed)

    @cached_property
    def vectors(self) -> LoraVectors:
        """The projections; fitted only if there is something left to project."""
        return LoraVectors.of(self.spec, self.config.components, self.config.seed)

    def generated(self, operation: str) -> dict[str, Tensor]:
        """LoRAs of one operation on all crops: projected; words, picture and the edit they make."""
        sources, _ = self.encoders.pictures(operation, self.draws)
        words = self.encoders.words(operation, self.draws)
        found: list[dict[str, Tensor]] = []
        for start in range(0, len(sources), _ROWS):
            rows = slice(start, start + _ROWS)
            edit = self.pipeline.edit(
                sources[rows], words[rows], seed=self.config.seed, steps=self.config.steps, area=None
            )
            shown = torch.stack([_thumbnails(sources[rows]), _thumbnails(edit.image)], dim=1)
            found.append({**self.vectors(edit.adapter), "pictures": shown})
        edits = self.encoders.edits(operation, self.draws)
        tokens = image_tokens(edits.source).flatten(1).cpu()
        together = {key: torch.cat([part[key] for part in found]) for key in found[0]}
        return together | {"text": edits.text.pooled.cpu(), "image": tokens}

    def optimised(self, operation: str) -> dict[str, Tensor]:
        """LoRAs optimised on the first crops, each for its pair alone; losses of it and the generated one."""
        config, draws = self.config, self.draws.first(self.config.optimised_crops)
        edits = self.encoders.edits(operation, draws)
        generator = torch.Generator().manual_seed(config.seed + 1)

        def edits_of(step: int) -> Edits:
            noise = torch.randn(edits.noise.shape, generator=generator)
            return edits.at(sample_times(len(edits), generator), noise)

        checks = [edits_of(-1) for _ in range(config.optimised_checks)]
        start = fresh_adapter(self.spec, len(draws), config.seed, self.encoders.device)
        own, _ = optimise(
            self.pipeline.backbone, start, edits_of, config.optimised_steps, config.optimised_lr, operation
        )
        generated = generate(self.pipeline.generator, embedded_condition(edits.source, edits.text))
        losses = {
            f"loss, {name}": self._losses(adapter, checks)
            for name, adapter in (("frozen", start), ("generated", generated), ("optimised", own))
        }
        return {**self.vectors(own), **losses}

    def distortion(self) -> Result:
        """What projecting does to the distances between LoRAs of a dozen operations on one crop."""
        names = self.config.names[:: max(1, self.config.operations // 12)]
        edits = Edits.cat([self.encoders.edits(name, self.draws.first(1)) for name in names])
        adapter = generate(self.pipeline.generator, embedded_condition(edits.source, edits.text))
        return {"pairs": len(names) * (len(names) - 1) // 2, **self.vectors.distortion(adapter)}

    @torch.no_grad()
    def _losses(self, adapter: Adapter, checks: list[Edits]) -> Tensor:
        return torch.stack([row_losses(self.pipeline.backbone, adapter, edits) for edits in checks]).mean(0)


def _thumbnails(images: Tensor) -> Tensor:
    """(N, 3, H, W) in [0, 1] to small uint8 pictures."""
    small = F.interpolate(images.float().cpu(), size=(THUMBNAIL, THUMBNAIL), mode="area")
    return (small.clamp(0, 1) * 255).round().to(torch.uint8)


def _map(points: np.ndarray, config: GeometryConfig) -> list[list[float]]:
    """A t-SNE in two dimensions, as lists of x and of y."""
    tsne = TSNE(perplexity=min(config.perplexity, len(points) - 1), init="pca", random_state=config.seed)
    return tsne.fit_transform(points).T.round(2).tolist()


def _describe(labels: np.ndarray, where: dict[str, np.ndarray], config: GeometryConfig) -> list[Result]:
    """Of every cluster its size, and its most frequent operations or, where it has most of them, crops."""
    found = []
    for label in range(config.clusters):
        operations, crops = (
            np.bincount(where[key][labels == label], minlength=total)
            for key, total in (("operation", config.operations), ("crop", config.crops))
        )
        few = (operations > 0).mean() <= (crops > 0).mean()
        counts, names = (
            (operations, config.names) if few else (crops, [f"crop {i + 1}" for i in range(config.crops)])
        )
        most = np.argsort(-counts, kind="stable")[:4]
        found.append(
            {
                "pairs": int(counts.sum()),
                "operations": int((operations > 0).sum()),
                "crops": int((crops > 0).sum()),
                "mostly": [names[i] for i in most if counts[i]],
            }
        )
    return found


def _agreement(
    points: dict[str, np.ndarray], labels: dict[str, np.ndarray], config: GeometryConfig
) -> Result:
    """Of clusters of LoRAs with everything that they could be clusters of."""
    return {
        kind: {
            by: agreement(points[kind], found, config.seed) for by, found in labels.items() if by != "chinese"
        }
        for kind in KINDS
    }


def _neighbours(
    points: dict[str, np.ndarray], where: dict[str, np.ndarray], config: GeometryConfig
) -> Result:
    """k nearest against random LoRAs, by what they have in common; also with one of the two held fixed."""
    image, text = cosine_of(points["image"]), cosine_of(points["text"])
    questions = {
        "picture": (image, None),
        "words": (text, None),
        "operation": (equality_of(where["operation"]), None),
        "language": (equality_of(where["chinese"]), None),
        "picture, same operation": (image, where["operation"]),
        "words, same crop": (text, where["crop"]),
    }
    return {
        kind: {
            name: compare(points[kind], similarity, _fewer(config.neighbours, within), config.seed, within)
            for name, (similarity, within) in questions.items()
        }
        for kind in KINDS
    }


def _fewer(k: int, within: np.ndarray | None) -> int:
    """k, or a quarter of the smallest group that neighbours are sought in."""
    return k if within is None else max(1, min(k, int(np.bincount(within).min()) // 4))


def _beside(
    parts: list[dict[str, Tensor]], optimised: list[dict[str, Tensor]], config: GeometryConfig
) -> Result:
    """Optimised LoRAs and the generated ones of the same pairs: losses, norms, likeness and a common map."""
    losses = {
        name: torch.cat([part[f"loss, {name}"] for part in optimised]).numpy()
        for name in ("frozen", "generated", "optimised")
    }
    twins = [
        {key: x[: config.optimised_crops] for key, x in part.items()}
        for part in parts[:: config.optimised_every]
    ]
    labels = np.repeat(np.arange(len(optimised)), config.optimised_crops)
    found: Result = {
        "pairs": len(labels),
        "operation": (labels * config.optimised_every).tolist(),
        "loss": {name: interval(values) for name, values in losses.items()},
        "loss_below_frozen": {
            name: interval(1 - losses[name] / losses["frozen"]) for name in ("generated", "optimised")
        },
        "norm": {
            name: interval(torch.cat([part["norm"] for part in some]).numpy())
            for name, some in (("generated", twins), ("optimised", optimised))
        },
    }
    for kind in KINDS:
        own, generated = (torch.cat([part[kind] for part in some]).numpy() for some in (optimised, twins))
        every = torch.cat([part[kind] for part in parts]).numpy()
        cosine = (own * generated).sum(1) / np.linalg.norm(own, axis=1) / np.linalg.norm(generated, axis=1)
        every_label = np.repeat(np.arange(config.operations), config.crops)
        found[kind] = {
            "cosine_of_twins": interval(cosine),
            "retrieved": retrieval(own, every, labels * config.optimised_every, every_label),
            "map": _map(np.vstack([generated, own]), config),
        }
    return found


STUDY = Study(GeometryConfig, run, report, figure)
