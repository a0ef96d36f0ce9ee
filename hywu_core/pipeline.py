"""Photograph and sentence in; a generated LoRA and an edited photograph out.

Shapes: B batch, H x W pixels (multiples of 16 after fitting), Z latent channels, h x w latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .apply import attach
from .backbones.embedded import EmbeddedBackbone
from .backbones.sampling import euler, seeded_noise
from .conditions import Condition
from .conditions.embedded import EmbeddedConditionEncoder, embedded_condition
from .embedded import GENERATOR
from .embedded.autoencoder import TinyAutoencoder
from .embedded.sizing import MULTIPLE, WORKING_AREA, fit_image
from .embedded.text import EmbeddedTextEncoder, TextFeatures
from .errors import HywuError
from .generate import generate
from .generator import ParameterGenerator, load_generator
from .generator.fingerprint import fingerprint
from .lora import Adapter

# More steps draw more texture that is not there: 8 are 0.3 dB further from the exact results, with as many
# edits right.
DEFAULT_STEPS = 4


@dataclass(frozen=True)
class Edit:
    """What one call of the pipeline made; images (B, 3, H, W) in [0, 1] at the working size."""

    source: Tensor
    image: Tensor
    adapter: Adapter | None


@dataclass(frozen=True)
class Request:
    """Images and instructions as the embedded models read them."""

    source: Tensor  # (B, 3, H, W) in [0, 1], at the working size
    latents: Tensor  # (B, Z, h, w)
    text: TextFeatures
    instructions: tuple[str, ...]

    def condition(self) -> Condition:
        """What the generator reads."""
        return embedded_condition(self.latents, self.text, self.instructions)


class HywuPipeline:
    """The embedded models together: encoders, generator, frozen backbone, autoencoder."""

    def __init__(
        self,
        backbone: EmbeddedBackbone,
        autoencoder: TinyAutoencoder,
        text_encoder: EmbeddedTextEncoder,
        generator: ParameterGenerator | None,
        generator_sha256: str | None = None,
    ) -> None:
        """`generator` None edits with the frozen backbone alone; one for another model is a HywuError.

        generator_sha256: its fingerprint, if it will not change, for the provenance of what it writes.
        """
        if generator is not None:
            check_embedded(generator)
        self.backbone = backbone
        self.autoencoder = autoencoder
        self.text_encoder = text_encoder
        self.generator = generator
        self.generator_sha256 = generator_sha256

    @classmethod
    def from_embedded(
        cls, generator: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> HywuPipeline:
        """The models that ship with the project, with another generator file if one is named."""
        # The generator first: it is the one file of somebody else's making, and is refused in a second.
        loaded = load_generator(generator if generator is not None else GENERATOR, device=device).eval()
        check_embedded(loaded)
        check_shipped_backbone(loaded)
        EmbeddedConditionEncoder.recognise(loaded.encoder_info)
        return cls(
            EmbeddedBackbone.load(device=device),
            TinyAutoencoder.load(device=device),
            EmbeddedTextEncoder.load().to(device),
            loaded,
            fingerprint(loaded),
        )

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(self.backbone.parameters()).device

    @torch.no_grad()
    def edit(
        self,
        images: Tensor,
        instructions: Sequence[str],
        *,
        seed: int = 0,
        steps: int = DEFAULT_STEPS,
        strength: float = 1.0,
        frozen_base: bool = False,
        write: Callable[[Condition], Adapter] | None = None,
        area: int | None = WORKING_AREA,
        on_step: Callable[[int], None] | None = None,
    ) -> Edit:
        """Edit images (B, 3, H, W) in [0, 1], each by its own instruction and its own generated LoRA.

        `frozen_base` (or a pipeline without a generator) leaves the LoRA out, to see what the backbone does
        alone. `write` makes the adapter of the condition in the generator's place, one for each image or one
        for all. `area` is the working size in pixels; None takes images as they are, which must be multiples
        of 16.
        """
        request = self.read(images, instructions, area)
        adapter = None
        if not frozen_base and (write is not None or self.generator is not None):
            adapter = self.write(request) if write is None else write(request.condition())
        image = self.draw(request, adapter, seed=seed, steps=steps, strength=strength, on_step=on_step)
        return Edit(request.source, image, adapter)

    @torch.no_grad()
    def read(self, images: Tensor, instructions: Sequence[str], area: int | None = WORKING_AREA) -> Request:
        """Encode images (B, 3, H, W) in [0, 1] and an instruction for each, once for any number of edits.

        area: as of `edit`. Raises HywuError for images of another form, and where there is not one for each.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise HywuError(
                f"Got images of shape {tuple(images.shape)}; they must be (batch, 3, height, width) in RGB."
            )
        if len(images) != len(instructions):
            raise HywuError(
                f"Got {len(images)} images and {len(instructions)} instructions; give one for each image."
            )
        height, width = images.shape[-2:]
        if area is None and (min(height, width) < 1 or height % MULTIPLE or width % MULTIPLE):
            raise HywuError(
                f"The images have {width} x {height} pixels; without a working size both must be multiples "
                f"of {MULTIPLE}."
            )
        source = images.to(self.device) if area is None else fit_image(images.to(self.device), area)
        text = self.text_encoder.encode(list(instructions))
        return Request(source, self.autoencoder.encode(source), text, tuple(instructions))

    @torch.no_grad()
    def write(self, request: Request) -> Adapter:
        """The generator's LoRA for each image and instruction."""
        assert self.generator is not None
        return generate(self.generator, request.condition(), generator_sha256=self.generator_sha256)

    @torch.no_grad()
    def draw(
        self,
        request: Request,
        adapter: Adapter | None,
        *,
        seed: int = 0,
        steps: int = DEFAULT_STEPS,
        strength: float = 1.0,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """The edited images (B, 3, H, W): sampled with the adapter, or by the frozen backbone alone.

        Raises HywuError where they are not finite, which a large strength makes them.
        """

        def velocity(x: Tensor, time: float) -> Tensor:
            times = torch.full((len(x),), time, device=x.device)
            return self.backbone(x, times, request.latents, request.text)

        noise = seeded_noise(request.latents.shape, seed).to(self.device)
        applied = (
            attach(self.backbone.transformer, adapter, strength) if adapter is not None else nullcontext()
        )
        with applied:
            latents = euler(velocity, noise, steps, on_step)
        image = self.autoencoder.decode(latents)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (latents, image)):
            raise HywuError(
                f"The edited picture is not finite with the LoRA at strength {strength:g}; "
                "choose a strength nearer to 1."
            )
        return image


def check_embedded(generator: ParameterGenerator) -> None:
    """HywuError unless the generator was trained with the embedded encoder for the embedded backbone."""
    encoder = generator.encoder_info.get("kind")
    backbone = generator.backbone_info.get("kind")
    if encoder != EmbeddedConditionEncoder.kind or backbone != EmbeddedBackbone.kind:
        raise HywuError(
            f"This generator adapts the backbone '{backbone}' and reads the conditions of the encoder "
            f"'{encoder}'; the embedded models need '{EmbeddedBackbone.kind}' and "
            f"'{EmbeddedConditionEncoder.kind}'."
        )


def check_shipped_backbone(generator: ParameterGenerator) -> None:
    """HywuError if a generator's file says that it was trained on other weights than the shipped backbone's.

    A LoRA for other weights would not fail, but spoil the picture.
    """
    trained_on, shipped = generator.backbone_info, EmbeddedBackbone.info()
    if trained_on.get("sha256", shipped["sha256"]) != shipped["sha256"]:
        raise HywuError(
            f"This generator was trained on the backbone '{trained_on.get('id')}' with the sha256 "
            f"{trained_on['sha256']}; the embedded '{shipped['id']}' here has {shipped['sha256']}."
        )
