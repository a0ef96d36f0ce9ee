"""Which rows of a model call an adapter serves: a call stacks chunks (positive, negative) of images.

Shapes: a call has M = K * N rows, K chunks of N images; row m belongs to image m mod N of chunk m // N.
Inside the model an activation has M rows too, or 2 M where a model stacks a second timestep on its modulation
(Qwen-Image-Edit 2511), in which row m stands for row m mod M of the call.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..errors import HywuError

POSITIVE = 0  # ComfyUI's number of the positive branch in `cond_or_uncond`; 1, and further ones, are negative

# The (first, end) rows an adapter serves, a batch of adapters one chunk at a time; None: every row there is.
Spans = tuple[tuple[int, int], ...] | None


def plan_spans(batch: int, branches: Collection[bool], chunks: Sequence[int], rows: int) -> Spans:
    """The rows that a batch of adapters serves in a call of `rows` rows; empty if it has no chunk there.

    batch: 1 adapter for every image, or one for each image.
    branches: which it serves; True is the positive branch, False the negative.
    chunks: `cond_or_uncond` of the call.

    Raises `HywuError` if there is neither 1 adapter nor one for each image.
    """
    served = [number for number, chunk in enumerate(chunks) if (chunk == POSITIVE) in branches]
    if not served:
        return ()
    if batch == 1 and len(served) == len(chunks):
        return None
    images = _images_in(rows, chunks)
    if batch == 1:
        return _joined(served, images)
    if batch != images:
        raise HywuError(
            f"Apply Generated LoRA holds {batch} LoRAs, but the latent is a batch of {images}; "
            "generate one LoRA for each image, or a single one for all."
        )
    return tuple((number * images, (number + 1) * images) for number in served)


def _joined(served: Sequence[int], images: int) -> tuple[tuple[int, int], ...]:
    """Neighbouring chunks as one span."""
    spans: list[tuple[int, int]] = []
    for number in served:
        first, end = number * images, (number + 1) * images
        if spans and spans[-1][1] == first:
            first = spans.pop()[0]
        spans.append((first, end))
    return tuple(spans)


def _images_in(rows: int, chunks: Sequence[int]) -> int:
    """N, the images in each chunk of a call of `rows` rows. Raises `HywuError` if chunks are not alike."""
    if not chunks or rows % len(chunks):
        raise HywuError(
            f"The model was called with {rows} rows for {len(chunks)} conditions; Apply Generated LoRA needs "
            "the same number of images for each condition."
        )
    return rows // len(chunks)
