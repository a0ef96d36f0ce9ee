"""A pool of exact edits as latents: crops of photographs under every operation, encoded once, drawn often.

Shapes: K images of a crop (the photograph itself, every operation's result, every degraded source), N crops,
Z latent channels, h x w latents, B batch.

Encoding costs several times what a training step of the small backbone does, so it happens once, before
training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..embedded.autoencoder import TinyAutoencoder
from .photo_ops import OPS, altered
from .photos import random_crops

_CHUNK = 64
_HALF = {"cuda": torch.float16}  # devices on which 16 bits are always quicker


@dataclass(frozen=True)
class EditBatch:
    """Exact edits: latents of the source and of the result, and which operation joins them."""

    source: Tensor  # (B, Z, h, w)
    target: Tensor  # (B, Z, h, w)
    operation: Tensor  # (B,) index into LatentPool.operations

    def __len__(self) -> int:
        return len(self.operation)

    def __getitem__(self, rows: slice | list[int]) -> EditBatch:
        """Some of the edits, as a batch."""
        return EditBatch(self.source[rows], self.target[rows], self.operation[rows])


class LatentPool:
    """Latents of `crops` random crops for every image size, under every operation."""

    def __init__(
        self,
        photos: Sequence[Tensor],
        operations: Sequence[str],
        autoencoder: TinyAutoencoder,
        sizes: Sequence[tuple[int, int]],
        crops: int,
        generator: torch.Generator,
        on_chunk: Callable[[int], None] | None = None,
        half: bool = False,
    ) -> None:
        """Build the pool on the generator's device; `on_chunk(crops done)` after every chunk of a size.

        half: encode in 16 bits also where there is no CUDA: the latents move by half a percent.
        """
        self._half = _HALF.get(generator.device.type, torch.bfloat16 if half else None)
        self.operations = tuple(operations)
        self._source = torch.zeros(len(operations), dtype=torch.long, device=generator.device)
        self._target = torch.zeros_like(self._source)
        for index, operation in enumerate(operations):
            changed = self._target if OPS[operation].kind == "forward" else self._source
            changed[index] = index + 1
        self._latents: list[Tensor] = []  # for each size (K, N, Z, h, w)
        for size in sizes:
            chunks = []
            for start in range(0, crops, _CHUNK):
                photo = random_crops(photos, min(_CHUNK, crops - start), size, generator)
                chunks.append(
                    torch.stack(
                        [self._encode(autoencoder, image) for image in self._images(photo, generator)]
                    )
                )
                if on_chunk is not None:
                    on_chunk(len(photo))
            self._latents.append(torch.cat(chunks, dim=1))

    def _images(self, photo: Tensor, generator: torch.Generator):
        """The photographs (B, 3, H, W) and, for each operation, what is not the photograph in its pair."""
        yield photo
        for operation in self.operations:
            yield altered(OPS[operation], photo, generator)

    @torch.no_grad()
    def _encode(self, autoencoder: TinyAutoencoder, images: Tensor) -> Tensor:
        if self._half is torch.bfloat16:
            # The order in which a CPU convolves in 16 bits: two to three times quicker than planes.
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, self._half, enabled=self._half is not None):
            latents = autoencoder.encode(images)
        return latents.to(torch.float16, memory_format=torch.contiguous_format)

    def sample(self, batch_size: int, generator: torch.Generator, weights: Tensor | None = None) -> EditBatch:
        """A batch of one image size; `weights` (operations,) makes some operations likelier."""
        device = generator.device
        which = int(torch.randint(len(self._latents), (1,), generator=generator, device=device))
        latents = self._latents[which]
        if weights is None:
            weights = torch.ones(len(self.operations), device=device)
        operation = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
        crop = torch.randint(latents.shape[1], (batch_size,), generator=generator, device=device)
        return EditBatch(
            source=latents[self._source[operation], crop].float(),
            target=latents[self._target[operation], crop].float(),
            operation=operation,
        )
