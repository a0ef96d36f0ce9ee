"""A HY-WU training step in several ways, on the same model, data and seeds: the trainer's, and plain ones.

Plainly: one sample at a time, since each has its own LoRA; its generator pass by itself; every adapted matrix
written out as W + scale * B A and put in the place of W (`torch.func.functional_call`). Either the losses are
added up and one backward pass follows, as anybody would write it first, or each sample has its own backward
pass at once, so that only one sample's activations are ever in memory.

Shapes: C conditions, R noise levels of each, Z latent channels, h x w latents, S condition tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..apply import attach
from ..backbones.embedded import EmbeddedBackbone, EmbeddedBackboneConfig
from ..conditions import Condition
from ..embedded.text import TextFeatures
from ..generator import GeneratorConfig, ParameterGenerator
from ..lora import LoraSpec
from ..train.objective import sample_times
from ..train.optimizer import parameter_groups

_GRAD_CLIP = 1.0


@dataclass(frozen=True)
class Size:
    """A generator on a FLUX of the embedded one's architecture.

    latents: a side of the picture, and of its reference; 2 x 2 to a token.  n_condition: S.
    """

    backbone: EmbeddedBackboneConfig
    latents: int
    n_text: int
    d_model: int
    n_layers: int
    rank: int
    conditions: int
    n_condition: int = 49
    condition_dim: int = 544


SIZES = {
    "tiny": Size(EmbeddedBackboneConfig(1, 1, 1, text_dim=64), 8, 4, 32, 2, 4, 2, 6, 64),
    # The shipped models at the size they are trained at.
    "small": Size(EmbeddedBackboneConfig(), 32, 32, 256, 3, 8, 8),
    # The same picture, a backbone sixteen times as wide in its matrices.
    "mid": Size(EmbeddedBackboneConfig(2, 6, 8), 32, 32, 512, 4, 16, 4),
    # FLUX.1's width and a picture of 1024 pixels, a fifth of its blocks: for a GPU.
    "large": Size(EmbeddedBackboneConfig(4, 8, 24, text_dim=4096), 128, 512, 1024, 6, 16, 2, 1024, 1152),
}


@dataclass(frozen=True)
class Batch:
    """The rows of one step, condition by condition: everything random about it, drawn before."""

    condition: Condition  # C
    noisy: Tensor  # (C R, Z, h, w)
    source: Tensor
    wanted: Tensor  # the velocity
    time: Tensor  # (C R,)
    text: TextFeatures

    def parts(self, count: int) -> list[Batch]:
        """So many micro-batches; `count` divides the conditions."""
        size = self.condition.batch // count
        return [self._part(slice(number * size, (number + 1) * size)) for number in range(count)]

    def _part(self, conditions: slice) -> Batch:
        repeats = len(self.time) // self.condition.batch
        rows = slice(conditions.start * repeats, conditions.stop * repeats)
        return Batch(
            Condition(self.condition.tokens[conditions]),
            *(x[rows] for x in (self.noisy, self.source, self.wanted, self.time)),
            TextFeatures(*(x[rows] for x in self.text)),
        )


def draw(size: Size, repeats: int, seed: int, device: torch.device) -> Batch:
    """A batch from a seed."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    config, rows = size.backbone, size.conditions * repeats
    latents = (rows, config.latent_channels, size.latents, size.latents)
    target, noise, source = normal(*latents), normal(*latents), normal(*latents)
    time = sample_times(rows, generator)
    t = time.view(-1, 1, 1, 1)
    mask = torch.ones(rows, size.n_text, dtype=torch.bool, device=device)
    return Batch(
        Condition(normal(size.conditions, size.n_condition, size.condition_dim)),
        (1 - t) * target + t * noise,
        source,
        noise - target,
        time,
        TextFeatures(normal(rows, size.n_text, config.text_dim), mask, normal(rows, config.text_dim)),
    )


class TrainingStep(ABC):
    """A generator with its optimiser, and the frozen backbone; calling it takes one step on the next batch.

    losses: of the steps taken, on the device.
    """

    def __init__(
        self, size: Size, batches: Sequence[Batch], device: torch.device, bf16: bool, checkpointing: bool
    ) -> None:
        torch.manual_seed(0)
        self.backbone = EmbeddedBackbone(size.backbone).to(device).requires_grad_(False)
        spec = LoraSpec.from_module(self.backbone.transformer, rank=size.rank, alpha=size.rank)
        config = GeneratorConfig(size.condition_dim, size.d_model, size.n_layers)
        self.generator = ParameterGenerator(config, spec).to(device).train()
        # Not from zero effect: a wrong way through the backbone is to show in the first loss.
        nn.init.normal_(self.generator.proj_out_B.weight, std=config.d_row**-0.5)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.generator, 0.01), lr=1e-4, fused=device.type == "cuda"
        )
        self.batches, self.device, self.bf16 = batches, device, bf16
        self.losses: list[Tensor] = []
        self.recompute(checkpointing)

    def recompute(self, on: bool) -> None:
        """Switch gradient checkpointing of generator and backbone."""
        self.generator.gradient_checkpointing = on
        transformer = self.backbone.transformer
        (transformer.enable_gradient_checkpointing if on else transformer.disable_gradient_checkpointing)()

    def __call__(self) -> None:
        """One step."""
        batch = self.batches[len(self.losses) % len(self.batches)]
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(self.gradients(batch).float())
        nn.utils.clip_grad_norm_(self.generator.parameters(), _GRAD_CLIP)
        self.optimizer.step()

    @abstractmethod
    def gradients(self, batch: Batch) -> Tensor:
        """Leave the gradients of the loss in the generator's parameters; return the loss, detached."""

    @property
    def resident_bytes(self) -> int:
        """Of weights, moments and, as they are there at the end of a step, gradients."""
        weights = list(self.generator.parameters())
        moments = [t for state in self.optimizer.state.values() for t in state.values()]
        held = [*weights, *moments, *self.backbone.parameters()]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def autocast(self) -> AbstractContextManager:
        """The precision of the step."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()


class Ours(TrainingStep):
    """All LoRAs of a micro-batch in one forward pass, beside the frozen weights, all its rows at once.

    accumulate: micro-batches of a step.
    """

    accumulate = 1

    def gradients(self, batch: Batch) -> Tensor:
        """As `train/loop.py` and `train/adapting.py` do it."""
        return torch.stack([self._of_part(part) for part in batch.parts(self.accumulate)]).sum()

    def _of_part(self, part: Batch) -> Tensor:
        with self.autocast():
            adapter = self.generator(part.condition)
        with attach(self.backbone.transformer, adapter):
            with self.autocast():
                loss = _loss(self.backbone, part) / self.accumulate
            loss.backward()
        return loss.detach()


class Plain(TrainingStep):
    """Sample by sample through written-out weights, then one backward pass."""

    def gradients(self, batch: Batch) -> Tensor:
        """Of the mean over the samples."""
        step = _Loss(self.backbone, self.autocast)
        losses = [self._one(step, sample) for sample in batch.parts(batch.condition.batch)]
        loss = torch.stack(losses).mean()
        loss.backward()
        return loss.detach()

    def _one(self, step: nn.Module, sample: Batch) -> Tensor:
        with self.autocast():
            adapter = self.generator(sample.condition)
            merged = dict(self._merged(adapter, adapter.scale))
        return functional_call(step, merged, (sample,))

    def _merged(self, adapter: object, scale: float) -> Iterator[tuple[str, Tensor]]:
        weights = dict(self.backbone.transformer.named_parameters())
        for name, (A, B) in adapter.items():
            weight = weights[f"{name}.weight"]
            yield f"backbone.transformer.{name}.weight", weight + scale * (B[0] @ A[0]).to(weight)


class Thrifty(Plain):
    """The same with a backward pass after each sample."""

    def gradients(self, batch: Batch) -> Tensor:
        """Added up over the samples."""
        samples = batch.parts(batch.condition.batch)
        step = _Loss(self.backbone, self.autocast, backward_of=len(samples))
        return torch.stack([self._one(step, sample) for sample in samples]).mean()


class _Loss(nn.Module):
    """A sample's loss; and its backward pass as one of several, inside the call.

    There what is recomputed sees the same weights.
    """

    def __init__(
        self,
        backbone: EmbeddedBackbone,
        autocast: Callable[[], AbstractContextManager],
        backward_of: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self._autocast, self._backward_of = backbone, autocast, backward_of

    def forward(self, sample: Batch) -> Tensor:
        with self._autocast():
            loss = _loss(self.backbone, sample)
        if self._backward_of is None:
            return loss
        (loss / self._backward_of).backward()
        return loss.detach()


def _loss(backbone: EmbeddedBackbone, batch: Batch) -> Tensor:
    """Flow matching, as in `train/objective.py`, at times and with noise that are given."""
    velocity = backbone(batch.noisy, batch.time, batch.source, batch.text)
    return F.mse_loss(velocity.float(), batch.wanted)
