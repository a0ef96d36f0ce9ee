"""A generator that `python -m hywu_core.train` made of somebody's data set, and what it does without ComfyUI.

Shapes: Z latent channels, h x w latents.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hywu_core import attach, load_generator
from hywu_core.backbones.base import EditBackbone
from hywu_core.backbones.inputs import EditInputs, EditSample, collate
from hywu_core.backbones.registry import backbone_class
from hywu_core.backbones.sampling import euler, seeded_noise
from hywu_core.data.paired import Sample
from hywu_core.generate import generate
from hywu_core.train.__main__ import main
from hywu_core.train.encoded_edits import Encoded, EncodedEdits, Encoders, Names
from hywu_core.train.paired_recipe import load_condition_encoder, look

from ..data import paired_writers as conventions
from ..train.own_data import QUICK, write_data

EDITS, CONTROLS = 2, 2
RESOLUTION = 79  # of photographs of 96 x 64 pixels: they keep their size
SEED = 11


@dataclass(frozen=True)
class Trained:
    """A finished run folder; its data set is read through the trainer's own cache."""

    out: Path

    @classmethod
    def on_own_data(
        cls, root: Path, kind: str, backbone: Path, encoder: str | Path, *more: object
    ) -> Trained:
        """Write a data set of two controls an edit and train on it by the command."""
        data = write_data(root / "data", conventions.diffsynth_json, CONTROLS, EDITS)
        models = ("--backbone", backbone, "--encoder", encoder, "--cache", root / "cache")
        arguments = ("--recipe", kind, "--data", data, *models, "--out", root / "run", *QUICK)
        arguments += ("--resolution", RESOLUTION, "--lr", 1e-2, "--set", "prompt_dropout=0", *more)
        assert main([str(argument) for argument in arguments]) == 0
        return cls(root / "run")

    @property
    def generator(self) -> Path:
        """What was exported."""
        return self.out / "hywu_generator.safetensors"

    @cached_property
    def settings(self) -> dict:
        """As the run folder keeps them."""
        return json.loads((self.out / "run.json").read_text(encoding="utf-8"))["settings"]

    @property
    def backbone_folder(self) -> Path:
        """The frozen model, as diffusers keeps it."""
        return Path(self.settings["backbone"])

    @property
    def file(self) -> str:
        """A name for files of this run in a server's folders."""
        return f"{self.backbone_folder.name}.safetensors"

    @cached_property
    def backbone(self) -> EditBackbone:
        """The frozen model it was trained on."""
        return self._kind.load_transformer(self.backbone_folder, dtype=torch.float32)

    def sample(self, index: int) -> Sample:
        """An edit of the data set as files."""
        return self._edits.data[index]

    def encoded(self, index: int) -> Encoded:
        """The same edit as it was trained on; HywuError for what is not in the cache."""
        return self._edits.read(index, self.sample(index).prompt, self._names)

    def inputs(self, index: int) -> EditInputs:
        """What the backbone sees of it: its text, and for its pictures, which random autoencoders make all
        alike, noise of their size.
        """
        sample = self.encoded(index).sample
        controls = (seeded_noise(latent.shape, seed) for seed, latent in enumerate(sample.controls))
        return collate([EditSample(sample.text, tuple(controls))])

    def noise(self, index: int) -> Tensor:
        """(1, Z, h, w), what ComfyUI's samplers draw for SEED."""
        return seeded_noise(self.encoded(index).target.shape, SEED)

    @torch.no_grad()
    def edited(
        self, index: int, sigmas: Sequence[float], guidance: float, adapted: bool, turned: bool = False
    ) -> Tensor:
        """Latents (1, Z, h, w) with the LoRA of this edit, or without; every matrix in float32.

        turned: the pictures in the wrong order.
        """
        inputs, transformer = self.inputs(index), self.backbone.transformer
        if turned:
            inputs = EditInputs(inputs.text, inputs.controls[::-1])
        generator = load_generator(self.generator, dtype=torch.float32)
        adapter = generate(generator, self.encoded(index).condition)
        with attach(transformer, adapter) if adapted else nullcontext():
            return euler(
                lambda x, now: self.backbone(x, torch.tensor([now]), inputs, guidance),
                self.noise(index),
                sigmas,
            )

    @property
    def _kind(self) -> type[EditBackbone]:
        return backbone_class(json.loads((self.out / "run.json").read_text(encoding="utf-8"))["recipe"])

    @cached_property
    def _edits(self) -> EncodedEdits:
        return look(self._kind, self.settings)

    @cached_property
    def _names(self) -> Names:
        backbone = self._kind.load_encoders(self.backbone_folder, dtype=torch.float32)
        condition = load_condition_encoder(self.settings, torch.device("cpu"), embedded=False)
        return Names.of(Encoders(backbone, condition))
