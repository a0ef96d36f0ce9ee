"""Recipes for users' data sets of paired edits: an adaptation learns them on a large frozen backbone.

Shapes: C edits, Z latent channels, h x w latents.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..apply import Attachment, attach
from ..backbones.base import EditBackbone
from ..backbones.inputs import EMBEDS, EditInputs
from ..backbones.packing import count_tokens
from ..data.paired.sampler import Batches
from ..errors import require_positive
from ..lora import Adapter
from ..storage import atomic_folder
from .adaptation import Adaptation, export
from .adapting import AdaptingConfig, AdaptingTask, Edits
from .encoded_edits import Encoded, EncodedEdits, Names, together
from .held_out import HeldOut
from .processes import first_process
from .shown import Shown

log = logging.getLogger("hywu")


@dataclass(frozen=True)
class PairedConfig(AdaptingConfig):
    """How a data set is drawn from."""

    held_out: int = 4  # samples that are measured and shown, never trained on where there are enough
    sample_steps: int = 20  # of the pictures that are shown
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "held_out", "sample_steps")


def split(n: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """(what is trained on, what is held out) of n samples; at most a fifth is held out."""
    order = list(range(n))
    random.Random(seed).shuffle(order)
    kept = min(held_out, n // 5)
    return sorted(order[kept:]), sorted(order[:kept])


class PairedTask(AdaptingTask):
    """Edits of a data set, read from the cache; the next batch is read while this one is computed."""

    shows_at_end = True

    def __init__(
        self,
        name: str,
        backbone: EditBackbone,
        edits: EncodedEdits,
        names: Names,
        adaptation: Adaptation,
        config: PairedConfig,
        encoder_info: dict[str, Any],
        decode: Callable[[Tensor], Tensor],
        compiled: bool = False,
        half: bool = False,
    ) -> None:
        """`names`: what encodings are found by. `encoder_info`: of the conditions, for a generator's file.

        decode: latents (B, Z, h, w) to pictures (B, 3, H, W), for those that are shown. half: whether the run
        computes under autocast to bfloat16.
        """
        super().__init__(name, backbone.transformer, adaptation, config, compiled)
        self.backbone, self.edits, self.names = backbone, edits, names
        self.encoder_info, self.half = encoder_info, half
        self._run = torch.compile(backbone) if compiled else backbone
        self.trained, self.shown = split(len(edits), config.held_out, config.seed)
        self._batches: dict[int, Batches] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="hywu-read")
        self._ahead: tuple[int, Future[Edits]] | None = None
        self.held_out = HeldOut(self, self.shown or self.trained[: config.held_out], decode)

    @property
    def device(self) -> torch.device:
        """Where training happens."""
        return next(self.module.parameters()).device

    def batch(self, size: int, generator: torch.Generator, index: int) -> Edits:
        """This team's share of the edits of micro-batch `index`; no number of `generator` is needed."""
        n = self.conditions(size)
        if self._ahead is not None and self._ahead[0] == index:
            edits = self._ahead[1].result()
        else:
            edits = self._read(n, index)
        self._ahead = index + 1, self._reader.submit(self._read, n, index + 1)
        return Edits(
            edits.condition.to(self.device),
            edits.tasks.to(self.device),
            edits.target.to(self.device, torch.float32),
            edits.inputs.to(self.device),
        )

    def velocity(self, x: Tensor, time: Tensor, inputs: EditInputs) -> Tensor:
        """The backbone's."""
        return self._run(x, time, inputs)

    def attach(self, adapter: Adapter) -> Attachment:
        """As the backbone lays out its rows."""
        return attach(self.transformer, adapter, copies=self.backbone.copies)

    def tokens_per_row(self, batch: Edits) -> int:
        """Text, noisy and control tokens."""
        inputs: EditInputs = batch.inputs
        pictures = (batch.target, *inputs.controls)
        return inputs.text[EMBEDS].shape[1] + sum(map(count_tokens, pictures))

    def shifted(self, time: Tensor, target: Tensor) -> Tensor:
        """As this backbone was trained at this size."""
        return self.backbone.schedule.shift(time, count_tokens(target))

    def _read(self, n: int, index: int) -> Edits:
        """This team's part of the n edits of micro-batch `index`, on the CPU."""
        if n not in self._batches:
            groups = [self.edits.groups[i] for i in self.trained]
            repeats = [self.edits.data.samples.repeats[i] for i in self.trained]
            self._batches[n] = Batches(groups, n, self.config.seed, tail="carry", repeats=repeats)
            if (rare := self._batches[n].rare())[0] and first_process():
                log.warning(
                    "%d of the layouts have fewer samples (%d in all) than a batch of %d: a sample of these "
                    "is several times in one batch, which comes as much more rarely. --check-data shows the "
                    "layouts; smaller batches mix better.",
                    *rare,
                    n,
                )
        whole = [self.trained[place] for place in self._batches[n].at(index)]
        draw = random.Random(f"{self.config.seed} {index}")
        prompts = [self._prompt(i, draw) for i in whole]
        own = self.share.conditions.rows(n)
        read = [self.read(i, prompt) for i, prompt in zip(whole[own], prompts[own], strict=True)]
        return self.collate(read, whole[own])

    def _prompt(self, index: int, draw: random.Random) -> str:
        phrased, dropped = draw.random(), draw.random()
        return "" if dropped < self.config.prompt_dropout else self.edits.data[index].phrasing(phrased)

    def read(self, index: int, prompt: str | None = None) -> Encoded:
        """An encoded sample, under its own prompt or another."""
        return self.edits.read(index, self.edits.data[index].prompt if prompt is None else prompt, self.names)

    def collate(self, encoded: Sequence[Encoded], indices: Sequence[int]) -> Edits:
        """Encoded samples as a batch on the CPU."""
        target, inputs, condition = together(encoded, self.backbone.collate)
        tasks = torch.tensor([self.edits.tasks[self.edits.data[index].prompt] for index in indices])
        return Edits(condition, tasks, target, inputs)

    def show(self) -> Shown:
        """Held-out edits as things are now, beside the frozen base's."""
        self.release()
        return self.held_out.show()

    def finish(self, out: Path) -> str:
        """Write what was learned; say what it reached on held-out edits when they were last shown."""
        self.release()
        self.save(out)
        return self.held_out.sentence()

    def save(self, out: Path) -> None:
        """A generator file, LoRA files, or the fine-tuned transformer as a folder that diffusers opens."""
        if self.adaptation.kind == "sft":
            with atomic_folder(out / "transformer", new=False) as temporary:
                self.transformer.save_pretrained(temporary)
            return
        export(
            self.adaptation,
            out,
            "hywu_generator" if self.adaptation.kind == "hywu" else self.adaptation.kind,
            tuple(self.edits.tasks),
            encoder=self.encoder_info,
            backbone=self.backbone.backbone_info(),
            provenance={"recipe": self.name, "data_sha256": self.edits.sha256},
            dtype=torch.bfloat16,
        )

    def about(self) -> dict[str, Any]:
        """What is learned from and through, for the run folder."""
        data = self.edits.data
        return {
            "convention": data.convention,
            "samples": len(data),
            "layouts": len(self.edits.layouts),
            "held_out": [str(data[index].target) for index in self.shown],
            "sha256": self.edits.sha256,
            "encoder": self.names.condition,
            "backbone_encoders": self.names.backbone,
            "backbone": self.backbone.fingerprint,
        }
