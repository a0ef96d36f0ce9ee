"""What chance decides about an edit, drawn once and used for every operation: so that operations compare.

Shapes: N draws, H x W pixels, Z latent channels, h x w latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..apply import attach
from ..backbones.embedded import EmbeddedBackbone
from ..data.instructions import LANGUAGES, phrases
from ..data.photo_ops import OPS, altered
from ..data.photos import load_tensors, random_crops
from ..embedded.autoencoder import LATENT_CHANNELS, TinyAutoencoder
from ..embedded.sizing import MULTIPLE
from ..embedded.text import EmbeddedTextEncoder, TextFeatures
from ..errors import HywuError
from ..lora import Adapter
from ..train.objective import sample_times

_CHUNK = 64


@dataclass(frozen=True)
class Draws:
    """Crops of photographs, and for each a time, a noise and which of its operation's wordings to use."""

    crops: Tensor  # (N, 3, H, W) in [0, 1]
    time: Tensor  # (N,) in (0, 1)
    noise: Tensor  # (N, Z, h, w)
    wording: Tensor  # (N,) in [0, 1)
    split: str  # of photographs and words: "train" or "held_out"

    @classmethod
    def make(cls, n: int, pixels: int, split: str, seed: int) -> Draws:
        """`n` draws of square crops. HywuError where the models cannot take such a square."""
        if n < 1 or pixels < MULTIPLE or pixels % MULTIPLE:
            raise HywuError(
                f"{n} crops of {pixels} pixels were asked for; there must be at least 1, and their side must "
                f"be a positive multiple of {MULTIPLE}."
            )
        generator = torch.Generator().manual_seed(seed)
        crops = random_crops(load_tensors(split), n, (pixels, pixels), generator)
        return cls(
            crops=crops,
            time=sample_times(n, generator),
            noise=torch.randn(n, LATENT_CHANNELS, pixels // 8, pixels // 8, generator=generator),
            wording=torch.rand(n, generator=generator),
            split=split,
        )

    def __len__(self) -> int:
        return len(self.crops)

    def first(self, n: int) -> Draws:
        """The first `n` of them."""
        return Draws(self.crops[:n], self.time[:n], self.noise[:n], self.wording[:n], self.split)


@dataclass(frozen=True)
class Edits:
    """Exact edits as the backbone is trained on them."""

    source: Tensor  # (N, Z, h, w)
    target: Tensor  # (N, Z, h, w)
    text: TextFeatures
    time: Tensor  # (N,)
    noise: Tensor  # (N, Z, h, w)

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, index: slice | Tensor | Sequence[int]) -> Edits:
        """Some of them."""
        text = TextFeatures(*(feature[index] for feature in self.text))
        return Edits(self.source[index], self.target[index], text, self.time[index], self.noise[index])

    def at(self, time: Tensor, noise: Tensor) -> Edits:
        """The same edits at another time (N,) and noise (N, Z, h, w)."""
        return Edits(self.source, self.target, self.text, time.to(self.time), noise.to(self.noise))

    @staticmethod
    def cat(several: Sequence[Edits]) -> Edits:
        """One after another."""
        parts = {
            name: torch.cat([getattr(e, name) for e in several])
            for name in ("source", "target", "time", "noise")
        }
        text = TextFeatures(
            *(torch.cat(features) for features in zip(*(e.text for e in several), strict=True))
        )
        return Edits(text=text, **parts)


class EditMaker:
    """The encoders that make edits of draws, and the words they are asked for in."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        # Twice as fast on a CPU, which encodes for longer than it takes gradients.
        self.autoencoder = TinyAutoencoder.load(device=device).to(memory_format=torch.channels_last)
        self.text_encoder = EmbeddedTextEncoder.load().to(device)
        self._clean: tuple[Draws, Tensor] | None = None

    def words(self, operation: str, draws: Draws) -> list[str]:
        """The instruction of every draw, in English or Chinese."""
        said = [phrase.text for phrase in phrases(draws.split, [operation], LANGUAGES)]
        return [said[int(w * len(said))] for w in draws.wording.tolist()]

    def pictures(self, operation: str, draws: Draws) -> tuple[Tensor, Tensor]:
        """Source and exact result (N, 3, H, W) of an operation on the crops."""
        return _in_order(operation, draws.crops, _changed(operation, draws))

    @torch.no_grad()
    def edits(self, operation: str, draws: Draws) -> Edits:
        """An operation on all draws. The crops themselves are encoded once for all operations."""
        if self._clean is None or self._clean[0] is not draws:
            self._clean = draws, self._encode(draws.crops)
        changed = self._encode(_changed(operation, draws))
        source, target = _in_order(operation, self._clean[1], changed)
        text = self.text_encoder.encode(self.words(operation, draws), batched=True)
        return Edits(source, target, text, draws.time.to(self.device), draws.noise.to(self.device))

    def _encode(self, images: Tensor) -> Tensor:
        return torch.cat([self.autoencoder.encode(x.to(self.device)) for x in images.split(_CHUNK)])


def _changed(operation: str, draws: Draws) -> Tensor:
    """What an operation's pairs have beside the crops: its results or, of an inverse one, its sources."""
    return altered(OPS[operation], draws.crops, torch.Generator().manual_seed(0))


def _in_order(operation: str, crops: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
    """(source, target): an inverse operation leads back to the crop."""
    return (crops, changed) if OPS[operation].kind == "forward" else (changed, crops)


def row_losses(backbone: EmbeddedBackbone, adapter: Adapter, edits: Edits) -> Tensor:
    """The flow-matching loss (N,) of each edit (as `train/objective.py`), with the adapter attached.

    An adapter of batch P serves N = k * P edits, k consecutive ones each.
    """
    t = edits.time.view(-1, 1, 1, 1)
    with attach(backbone.transformer, adapter):
        x = (1 - t) * edits.target + t * edits.noise
        velocity = backbone(x, edits.time, edits.source, edits.text)
    return (velocity.float() - (edits.noise - edits.target)).square().mean(dim=(1, 2, 3))
