"""Which rows of a model call an adapter serves: a call stacks chunks (positive, negative) of images.

Shapes: a call has K * N rows, K chunks of N images; row m belongs to image m mod N of chunk m // N. Packs
that cut images into T tiles stack them, a whole call for each tile: M = T * K * N rows, and row m belongs
where row m mod (K * N) of a plain call does.
Inside the model an activation has M rows too, or 2 M where a model stacks a second timestep on its modulation
(Qwen-Image-Edit 2511), in which row m stands for row m mod M of the call.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..errors import HywuError

POSITIVE = 0  # ComfyUI's number of the positive branch in `cond_or_uncond`; 1, and further ones, are negative

# The (first, end) rows an adapter serves, a batch of adapters one chunk at a time; None: every row there is.
Spans = tuple[tuple[int, int], ...] | None


def plan_spans(
    batch: int, branches: Collection[bool], chunks: Sequence[int], rows: int, images: int | None = None
) -> Spans:
    """The rows that a batch of adapters serves in a call of `rows` rows; empty if it has no chunk there.

    batch: 1 adapter for every image, or one for each image.
    branches: which it serves; True is the positive branch, False the negative.
    chunks: `cond_or_uncond` of the call.
    images: N, where it is known; otherwise there are no tiles, and the rows tell it.

    Raises `HywuError` if there is neither 1 adapter nor one for each image, or if rows are left over.
    """
    served = [number for number, chunk in enumerate(chunks) if (chunk == POSITIVE) in branches]
    if not served:
        return ()
    if batch == 1 and len(served) == len(chunks):
        return None
    if not chunks or rows % (len(chunks) * (images or 1)):
        of_images = f" of {images} image{'s' if images > 1 else ''} each" if images else ""
        raise HywuError(
            f"The model was called with {rows} rows for {len(chunks)} conditions{of_images}; Apply Generated "
            "LoRA needs the same number of images for each condition."
        )
    images = images or rows // len(chunks)
    if batch not in (1, images):
        raise HywuError(
            f"Apply Generated LoRA holds {batch} LoRAs, but the latent is a batch of {images}; "
            "generate one LoRA for each image, or a single one for all."
        )
    spans = [
        (tile + number * images, tile + (number + 1) * images)
        for tile in range(0, rows, len(chunks) * images)
        for number in served
    ]
    return _joined(spans) if batch == 1 else tuple(spans)


def _joined(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Neighbouring spans as one."""
    joined: list[tuple[int, int]] = []
    for first, end in spans:
        if joined and joined[-1][1] == first:
            first = joined.pop()[0]
        joined.append((first, end))
    return tuple(joined)
