"""Recipes `embedded_generator`, `embedded_demo`: HY-WU on the frozen backbone, by the diffusion loss alone.

Shapes: B conditions, R noise levels of each, Z latent channels, h x w latents.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from ..apply import Attachment, attach
from ..backbones.embedded import EmbeddedBackbone
from ..conditions.embedded import CONDITION_DIM, EmbeddedConditionEncoder, embedded_condition
from ..data.latents import EditBatch
from ..data.photo_ops import OPS
from ..embedded import BACKBONE
from ..embedded.sizing import WORKING_AREA
from ..embedded.text import TextFeatures
from ..errors import HywuError
from ..generator import GeneratorConfig, ParameterGenerator, load_generator, save_generator
from ..images import save_sheet
from ..lora import Adapter, LoraSpec
from ..pipeline import HywuPipeline
from .loop import Task
from .objective import flow_matching_loss
from .warm_start import warm_start
from .world import EmbeddedWorld, Judged, WorldConfig, held_out_cases, judge


@dataclass(frozen=True)
class HywuTrainingConfig:
    """What the generator learns and how large it is."""

    operations: tuple[str, ...] = tuple(OPS)
    base_share: float = 0.3  # how likely a base operation is beside a new one: old competence must stay
    rank: int = 8
    d_model: int = 256
    n_layers: int = 3
    n_heads: int = 4
    mlp_ratio: float = 2.0
    accumulation: int = 1
    noise_levels: int = 2  # R: times drawn for each generated LoRA, so that one generation serves several
    wordings: int = 1  # held-out phrases of each operation in the closing measurement
    area: int = WORKING_AREA  # pixels of the photographs in the closing measurement
    photos: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.base_share < math.inf:
            raise HywuError(f"base_share is {self.base_share}; it must be a number that is not negative.")
        for name in ("rank", "d_model", "n_layers", "n_heads", "noise_levels", "wordings", "area"):
            if getattr(self, name) < 1:
                raise HywuError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.photos is not None and self.photos < 1:
            raise HywuError(f"photos is {self.photos}; the closing measurement needs at least 1.")


class HywuTask(Task):
    """Only the generator moves; gradients reach it through the LoRA it wrote (paper 3.6)."""

    file_name = "hywu_embedded_generator.safetensors"

    def __init__(
        self,
        name: str,
        config: HywuTrainingConfig,
        world: WorldConfig,
        device: torch.device,
        seed: int,
        init: str | Path | None = None,
        compiled: bool = False,
    ) -> None:
        """`init` is a generator file to start from; by default the generator starts at zero effect.

        `compiled` runs generator and backbone through torch.compile.
        """
        self.name, self.config = name, config
        self.backbone = EmbeddedBackbone.load(device=device)
        spec = LoraSpec.from_module(self.backbone.transformer, rank=config.rank, alpha=config.rank)
        torch.manual_seed(seed)
        self.module = ParameterGenerator(
            GeneratorConfig(
                condition_dim=CONDITION_DIM,
                d_model=config.d_model,
                n_layers=config.n_layers,
                n_heads=config.n_heads,
                mlp_ratio=config.mlp_ratio,
                accumulation=config.accumulation,
            ),
            spec,
        ).to(device)
        if init is not None:
            warm_start(self.module, init)
        self._compiled = compiled
        self._write = torch.compile(self.module) if compiled else self.module
        self._velocity = torch.compile(self.backbone) if compiled else self.backbone
        self._attachment: Attachment | None = None
        self.world = EmbeddedWorld(config.operations, world, device, seed)
        self._weights = torch.tensor(
            [config.base_share if OPS[name].split == "base" else 1.0 for name in config.operations],
            device=device,
        )

    def batch(self, size: int, generator: torch.Generator, index: int) -> tuple[EditBatch, TextFeatures]:
        """This team's of B exact edits and a wording of each, for `size` = B * R rows of the backbone."""
        conditions = max(1, size // self.config.noise_levels)
        edits = self.world.pool.sample(conditions, generator, self._weights)
        text = self.world.prompts.sample(edits.operation, generator)
        own = self.share.conditions.rows(conditions)
        return edits[own], TextFeatures(*(x[own] for x in text))

    def loss(self, batch: tuple[EditBatch, TextFeatures], generator: torch.Generator) -> Tensor:
        """Flow matching through the LoRA written for each edit, at R noise levels."""
        edits, text = batch
        adapter = self._write(embedded_condition(edits.source, text))
        adapters, rows = self.share.pairs(len(edits), self.config.noise_levels)
        edits, text = edits[rows], TextFeatures(*(x[rows] for x in text))
        with self._adapted(adapter.select(adapters)):
            return flow_matching_loss(
                lambda x, time: self._velocity(x, time, edits.source, text),
                edits.target,
                generator,
                self.share,
            )

    @contextmanager
    def _adapted(self, adapter: Adapter) -> Iterator[None]:
        """The backbone with this adapter; compiled, one attachment stands and only its tensors change."""
        if not self._compiled:
            with attach(self.backbone.transformer, adapter):
                yield
            return
        if self._attachment is None:
            self._attachment = attach(self.backbone.transformer, adapter)
        else:
            self._attachment.swap(adapter)
        yield

    def finish(self, out: Path) -> str:
        """Write the self-describing generator file; compare with the frozen base on held-out photographs."""
        if self._attachment is not None:
            self._attachment.remove()
        path = out / self.file_name
        save_generator(
            path,
            self.module,
            encoder=EmbeddedConditionEncoder.info(),
            backbone={"kind": EmbeddedBackbone.kind, "id": BACKBONE.stem, "sha256": file_sha256(BACKBONE)},
            provenance={"recipe": self.name},
            dtype=torch.float16,
        )
        device = next(self.module.parameters()).device
        parts = (self.backbone, self.world.autoencoder, self.world.text_encoder)
        pipeline = HywuPipeline(*parts, load_generator(path, device=device).eval())
        cases = held_out_cases(
            self.config.operations, self.config.wordings, self.config.photos, self.config.area
        )
        edited, frozen = judge(pipeline, cases), judge(pipeline, cases, frozen_base=True)
        _sheet(edited, frozen, out / "before_after.png")
        return _sentence(edited, frozen)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sheet(edited: Sequence[Judged], frozen: Sequence[Judged], path: Path) -> None:
    rows = [
        (f"{e.case.prompt}   (HY-WU {e.score:.1f} dB, frozen base {f.score:.1f} dB)",
         (e.case.source, f.result, e.result, e.case.target))
        for e, f in zip(edited, frozen, strict=True)
        if e.case.photo == 0
    ]  # fmt: skip
    save_sheet(rows, ("photograph", "frozen base", "HY-WU", "exact result"), path)


def _sentence(edited: Sequence[Judged], frozen: Sequence[Judged]) -> str:
    reached, base = fmean([j.score for j in edited]), fmean([j.score for j in frozen])
    photographs = len({j.case.photo for j in edited})
    operations = len({j.case.operation for j in edited})
    return (
        f"On {photographs} held-out photographs and {operations} operations, HY-WU reaches {reached:.2f} dB "
        f"of PSNR to the exact result on average; the frozen base alone reaches {base:.2f} dB and the "
        f"untouched photographs {fmean([j.untouched for j in edited]):.2f} dB: {reached - base:+.2f} dB over "
        "the frozen base."
    )
