"""Recipe `embedded_backbone`: pretrain the small FLUX Kontext on the base operations, then frozen."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from ..backbones.embedded import EmbeddedBackbone, EmbeddedBackboneConfig
from ..data.latents import EditBatch
from ..data.photo_ops import OPS
from ..embedded.text import TextFeatures
from ..images import save_sheet
from ..pipeline import HywuPipeline
from .loop import Task
from .objective import flow_matching_loss
from .world import EmbeddedWorld, WorldConfig, held_out_cases, judge, mean_untouched

BASE_OPERATIONS = tuple(name for name, op in OPS.items() if op.split == "base")


class BackboneTask(Task):
    """Flow matching from noise to the exact result; the source is Kontext's reference, the words its text."""

    name = "embedded_backbone"
    file_name = "hywu_embedded_flux_kontext.safetensors"

    def __init__(
        self,
        config: EmbeddedBackboneConfig,
        world: WorldConfig,
        device: torch.device,
        seed: int,
        compiled: bool,
    ) -> None:
        torch.manual_seed(seed)
        self.module = EmbeddedBackbone(config).to(device)
        self.world = EmbeddedWorld(BASE_OPERATIONS, world, device, seed)
        self._velocity = torch.compile(self.module) if compiled else self.module

    def batch(self, size: int, generator: torch.Generator, index: int) -> tuple[EditBatch, TextFeatures]:
        """Exact edits and a wording of each, this process's rows of them."""
        edits = self.world.pool.sample(size, generator)
        text = self.world.prompts.sample(edits.operation, generator)
        rows = self.share.rows(size)
        return edits[rows], TextFeatures(*(x[rows] for x in text))

    def loss(self, batch: tuple[EditBatch, TextFeatures], generator: torch.Generator) -> Tensor:
        """Mean squared velocity error."""
        edits, text = batch
        return flow_matching_loss(
            lambda x, time: self._velocity(x, time, edits.source, text),
            edits.target,
            generator,
            self.share,
        )

    def finish(self, out: Path) -> str:
        """Write the file that "Load Diffusion Model" opens; measure the base operations, held out."""
        path = out / self.file_name
        self.module.save(path)
        device = next(self.module.parameters()).device
        stored = EmbeddedBackbone.load(path, device)  # measure what was written, rounding included
        pipeline = HywuPipeline(stored, self.world.autoencoder, self.world.text_encoder, None)
        judged = judge(pipeline, held_out_cases(BASE_OPERATIONS, 1))
        rows = [
            (f"{j.case.prompt} ({j.score:.1f} dB)", (j.case.source, j.result, j.case.target))
            for j in judged
            if j.case.photo == 0
        ]
        save_sheet(rows, ("photograph", "edited", "exact result"), out / "before_after.png")
        return (
            f"On {len(judged)} held-out edits of {len(BASE_OPERATIONS)} operations the backbone reaches "
            f"{fmean([j.score for j in judged]):.2f} dB to the exact result; "
            f"the untouched photographs, where they are to change, are at {mean_untouched(judged):.2f} dB."
        )
