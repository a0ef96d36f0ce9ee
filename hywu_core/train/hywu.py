"""Recipes `embedded_generator`, `embedded_demo`: HY-WU on the frozen embedded backbone.

Shapes: C conditions, Z latent channels, h x w latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.embedded import EmbeddedBackbone
from ..backbones.packing import count_tokens
from ..backbones.schedule import shift_time
from ..conditions import Condition
from ..conditions.embedded import CONDITION_DIM, EmbeddedConditionEncoder, embedded_condition
from ..data.instructions import require_phrases
from ..data.photo_ops import OPS
from ..embedded.sizing import WORKING_AREA
from ..embedded.text import TextFeatures
from ..errors import HywuError, require_positive
from ..generator import GeneratorConfig, ParameterGenerator, load_generator
from ..lora import Adapter, LoraSpec
from ..pipeline import HywuPipeline
from ..storage import file_sha256
from ..tokens import TokenLayout
from .adaptation import export, make_adaptation, require_adaptation
from .adapting import AdaptingConfig, AdaptingTask, Edits
from .verdict import save_before_after, sentence
from .warm_start import lean_back, warm_start
from .world import EditCase, EmbeddedWorld, Judged, WorldConfig, held_out_cases, judge


@dataclass(frozen=True)
class HywuTrainingConfig(AdaptingConfig):
    """What the generator learns and how large it is."""

    operations: tuple[str, ...] = tuple(OPS)
    base_share: float = 0.3  # how likely a base operation is beside a new one: old competence must stay
    focus: tuple[str, ...] = ()  # operations that come more often, such as those that fail
    focus_share: float = 3.0  # how many times as often
    rank: int = 8
    d_model: int = 256
    n_layers: int = 3
    n_heads: int = 4
    mlp_ratio: float = 2.0
    accumulation: int = 1
    segment: int = 0  # channels C of a parameter token; 0: the largest that divides all dims
    targets: tuple[str, ...] = ()  # patterns of the linears that are adapted; none: all inside the blocks
    noise_levels: int = 2
    shift: float = 1.0  # more than 1 draws more of the times near noise, where what the edit is, is decided
    keep: float = 0.0  # the share of the weights it began with in those that are written
    adaptation: str = "hywu"  # of `adaptation.KINDS`
    wordings: int = 1  # held-out phrases of each operation in the closing measurement
    area: int = WORKING_AREA  # pixels of the photographs in the closing measurement
    photos: int | None = None

    def __post_init__(self) -> None:
        for name in ("base_share", "focus_share"):
            if not 0 <= getattr(self, name) < math.inf:
                raise HywuError(f"{name} is {getattr(self, name)}; it must be a number that is not negative.")
        if unknown := sorted(set(self.focus) - set(self.operations)):
            raise HywuError(
                f"There is no operation '{unknown[0]}' to focus on; there are {', '.join(self.operations)}."
            )
        super().__post_init__()
        if not 0 <= self.keep < 1:
            raise HywuError(f"keep is {self.keep}; it must be at least 0 and less than 1.")
        require_positive(self, "rank", "d_model", "n_layers", "n_heads", "wordings", "area")
        if not 0 < self.shift < math.inf:
            raise HywuError(f"shift is {self.shift}; it must be a positive number.")
        require_phrases("wordings", self.wordings, "held_out", self.operations, ("en",))
        if self.segment < 0:
            raise HywuError(f"segment is {self.segment}; it must be at least 1, or 0 for the default.")
        if self.photos is not None and self.photos < 1:
            raise HywuError(f"photos is {self.photos}; the closing measurement needs at least 1.")
        require_adaptation(self.adaptation)

    def weight(self, operation: str) -> float:
        """How likely an operation is, beside a new one without focus."""
        share = self.base_share if OPS[operation].split == "base" else 1.0
        return share * (self.focus_share if operation in self.focus else 1.0)

    def adapts(self, transformer: nn.Module) -> tuple[LoraSpec, TokenLayout]:
        """What of a transformer is adapted, and how its weights are cut into tokens."""
        spec = LoraSpec.from_module(transformer, self.targets or None, rank=self.rank, alpha=self.rank)
        return spec, TokenLayout.for_spec(spec, self.segment or None)

    def generator(self, condition_dim: int) -> GeneratorConfig:
        """The generator's own config."""
        return GeneratorConfig(
            condition_dim=condition_dim,
            d_model=self.d_model,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            mlp_ratio=self.mlp_ratio,
            accumulation=self.accumulation,
        )


@dataclass(frozen=True)
class EmbeddedInputs:
    """What the embedded backbone reads besides the noisy latents."""

    source: Tensor  # (C, Z, h, w)
    text: TextFeatures

    def __getitem__(self, rows: list[int]) -> EmbeddedInputs:
        """Those of some rows."""
        return EmbeddedInputs(self.source[rows], self.text.rows(rows))


class HywuTask(AdaptingTask):
    """A generator, or a baseline, learns exact edits of photographs on the embedded backbone."""

    file_name = "hywu_embedded_generator.safetensors"

    def __init__(
        self,
        name: str,
        config: HywuTrainingConfig,
        world: WorldConfig | EmbeddedWorld,
        device: torch.device,
        seed: int,
        init: str | Path | None = None,
        compiled: bool = False,
    ) -> None:
        """`init` is a generator file to start from; by default the generator starts at zero effect.

        world: how much to see, or what several trainings see: it is costly to make.
        """
        self.backbone = EmbeddedBackbone.load(device=device)
        transformer = self.backbone.transformer
        spec, layout = config.adapts(transformer)
        torch.manual_seed(seed)
        adaptation = make_adaptation(
            config.adaptation,
            transformer,
            spec,
            config.generator(CONDITION_DIM),
            len(config.operations),
            layout,
        )
        if config.keep and init is None:
            raise HywuError(f"keep is {config.keep}, a share of what is started from; name that by init.")
        self._kept: tuple[str, Mapping[str, Tensor]] | None = None  # hash and weights it leans back to
        if init is not None:
            if config.adaptation != "hywu":
                raise HywuError(f"init is a generator to start from; {config.adaptation} trains none.")
            start = warm_start(adaptation.module, init)
            if config.keep:  # now: the run's own result may take the file's place
                self._kept = file_sha256(init), start.state_dict()
        super().__init__(name, transformer, adaptation, config, compiled)
        self._run = torch.compile(self.backbone) if compiled else self.backbone
        if isinstance(world, WorldConfig):
            world = EmbeddedWorld(config.operations, world, device, seed)
        assert world.pool.operations == config.operations
        self.world = world
        self._weights = torch.tensor([config.weight(name) for name in config.operations], device=device)

    def batch(self, size: int, generator: torch.Generator, index: int) -> Edits:
        """This team's share of the exact edits, and a wording of each, for `size` rows of the backbone."""
        n = self.conditions(size)
        edits = self.world.pool.sample(n, generator, self._weights)
        text = self.world.prompts.sample(edits.operation, generator)
        if self.config.prompt_dropout:
            draw = torch.rand(n, generator=generator, device=generator.device)
            text = text.without(draw < self.config.prompt_dropout)
        own = self.share.conditions.rows(n)
        edits, text = edits[own], text.rows(own)
        condition = embedded_condition(edits.source, text)
        return Edits(condition, edits.operation, edits.target, EmbeddedInputs(edits.source, text))

    def velocity(self, x: Tensor, time: Tensor, inputs: EmbeddedInputs) -> Tensor:
        """The embedded FLUX."""
        return self._run(x, time, inputs.source, inputs.text)

    def shifted(self, time: Tensor, target: Tensor) -> Tensor:
        """By the config's `shift`."""
        return shift_time(time, self.config.shift)

    def tokens_per_row(self, batch: Edits) -> int:
        """Of the embedded FLUX."""
        inputs: EmbeddedInputs = batch.inputs
        pictures = (batch.target, inputs.source)
        return inputs.text.tokens.shape[1] + sum(map(count_tokens, pictures))

    def about(self) -> dict[str, Any]:
        """The models that it learns through, and what it keeps a share of."""
        models = {"encoder": EmbeddedConditionEncoder.info(), "backbone": EmbeddedBackbone.info()}
        return models if self._kept is None else models | {"kept": self._kept[0]}

    def finish(self, out: Path) -> str:
        """Write what was learned; compare with the frozen base on held-out photographs."""
        self.release()
        if self._kept is not None:
            lean_back(self.adaptation.module, self._kept[1], self.config.keep)
        (path, *_) = self.save(out)
        device = next(self.module.parameters()).device
        # Measured is what was written, rounding included.
        written = load_generator(path, device=device).eval() if self.config.adaptation == "hywu" else None
        edited, frozen = self.judge_held_out(self.pipeline(written))
        save_before_after(self.config.adaptation, edited, frozen, out / "before_after.png")
        return sentence(self.config.adaptation, edited, frozen)

    def save(self, out: Path) -> list[Path]:
        """Write the self-describing generator file, LoRA files, or the fine-tuned backbone."""
        stem = Path(self.file_name).stem if self.config.adaptation == "hywu" else self.config.adaptation
        if self.config.adaptation == "sft":
            path = out / f"{stem}.safetensors"
            self.backbone.save(path)
            return [path]
        return export(
            self.adaptation,
            out,
            stem,
            self.config.operations,
            encoder=EmbeddedConditionEncoder.info(),
            backbone=EmbeddedBackbone.info(),
            provenance={"recipe": self.name},
            dtype=torch.float16,
        )

    def pipeline(self, generator: ParameterGenerator | None = None) -> HywuPipeline:
        """The embedded models with a generator, if there is one, and otherwise with what `writer` gives."""
        return HywuPipeline(self.backbone, self.world.autoencoder, self.world.text_encoder, generator)

    def writer(self) -> Callable[[Sequence[EditCase], Condition], Adapter] | None:
        """For `judge`: the directly trained LoRA of each case; None where the pipeline needs no telling."""
        if self.config.adaptation in ("hywu", "sft"):
            return None

        def write(cases: Sequence[EditCase], condition: Condition) -> Adapter:
            tasks = [self.config.operations.index(case.operation) for case in cases]
            return self.adaptation.adapter(condition, torch.tensor(tasks, device=condition.tokens.device))

        return write

    def judge_held_out(self, pipeline: HywuPipeline) -> tuple[list[Judged], list[Judged]]:
        """Held-out edits by a pipeline with what was learned, and by the frozen base alone."""
        cases = held_out_cases(
            self.config.operations, self.config.wordings, self.config.photos, self.config.area
        )
        edited = judge(pipeline, cases, write=self.writer())
        if self.config.adaptation != "sft":
            return edited, judge(pipeline, cases, frozen_base=True)
        base = EmbeddedBackbone.load(device=next(self.module.parameters()).device)
        frozen = HywuPipeline(base, self.world.autoencoder, self.world.text_encoder, None)
        return edited, judge(frozen, cases)
