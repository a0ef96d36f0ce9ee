"""What the two diffusion recipes of the embedded world share: data, text, and how an edit is judged.

Shapes: B batch, H x W pixels, Z latent channels, h x w latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from ..conditions import Condition
from ..data.instructions import Phrase, phrases, require_phrases
from ..data.latents import LatentPool
from ..data.metrics import EQUAL, psnr
from ..data.photo_ops import OPS, make_pair
from ..data.photos import load_tensors
from ..data.prompts import PromptPool
from ..embedded.autoencoder import TinyAutoencoder
from ..embedded.sizing import MULTIPLE, WORKING_AREA, fit_image
from ..embedded.text import EmbeddedTextEncoder
from ..errors import HywuError
from ..lora import Adapter
from ..pipeline import DEFAULT_STEPS, HywuPipeline
from .processes import first_process

FULL_SIZES = ((256, 256), (256, 256), (224, 288), (288, 224), (192, 336), (336, 192), (208, 304), (304, 208))
_SMALLEST = 96


def sizes_about(pixels: int, shapes: int = 0) -> tuple[tuple[int, int], ...]:
    """The shapes of FULL_SIZES, of about pixels x pixels: smaller pictures are cheaper to learn from.

    shapes: how many different ones, in that order: fewer are sooner encoded and compiled; 0: as they are.
    Raises HywuError for less than 96 pixels, where rounding would make squares of all, and for other counts.
    """
    if pixels < _SMALLEST:
        raise HywuError(f"pixels is {pixels}; it must be at least {_SMALLEST}.")
    different = tuple(dict.fromkeys(FULL_SIZES))
    if not 0 <= shapes <= len(different):
        raise HywuError(f"shapes is {shapes}; it must be from 1 to {len(different)}, or 0 for all.")
    chosen = different[:shapes] if shapes else FULL_SIZES
    scale = pixels / math.sqrt(WORKING_AREA)
    return tuple(tuple(round(n * scale / MULTIPLE) * MULTIPLE for n in size) for size in chosen)


@dataclass(frozen=True)
class WorldConfig:
    """How much to see: image sizes, crops for each size, varied wordings for each phrase.

    half: encode in 16 bits, as `LatentPool` does.
    """

    sizes: tuple[tuple[int, int], ...] = FULL_SIZES
    crops: int = 384
    variants: int = 6
    half: bool = False

    def __post_init__(self) -> None:
        if self.crops < 1 or self.variants < 0:
            raise HywuError(
                f"crops is {self.crops} and variants {self.variants}; there must be at least 1 crop of each "
                "size, and not less than 0 variants."
            )
        for size in self.sizes:
            if min(size) < MULTIPLE or any(length % MULTIPLE for length in size):
                raise HywuError(f"The size {size} does not consist of positive multiples of {MULTIPLE}.")


class EmbeddedWorld:
    """Exact edits of the training photographs under some operations, in latents and words."""

    def __init__(
        self, operations: Sequence[str], config: WorldConfig, device: torch.device, seed: int
    ) -> None:
        self.autoencoder = TinyAutoencoder.load(device=device)
        self.text_encoder = EmbeddedTextEncoder.load().to(device)
        generator = torch.Generator(device).manual_seed(seed)
        crops = config.crops * len(config.sizes)
        quiet = not first_process()  # every process makes the same pool
        with tqdm(total=crops, desc="encoding exact edits", unit="crop", disable=quiet) as bar:
            photos = [photo.to(device) for photo in load_tensors("train")]
            self.pool = LatentPool(
                photos,
                operations,
                self.autoencoder,
                config.sizes,
                config.crops,
                generator,
                bar.update,
                config.half,
            )
        self.prompts = PromptPool(operations, self.text_encoder, config.variants, generator)


@dataclass(frozen=True)
class EditCase:
    """A held-out photograph, an operation in somebody's words, and the exact result."""

    photo: int
    phrase: Phrase
    clean: Tensor  # (3, H, W), the photograph; an inverse operation's source is made from it
    source: Tensor  # (3, H, W)
    target: Tensor  # (3, H, W)

    @property
    def operation(self) -> str:
        """The operation asked for."""
        return self.phrase.operation

    @property
    def prompt(self) -> str:
        """The words it is asked for in."""
        return self.phrase.text


def held_out_cases(
    operations: Sequence[str],
    wordings: int,
    photos: int | None = None,
    area: int = WORKING_AREA,
    split: str = "held_out",
    languages: tuple[str, ...] = ("en",),
) -> list[EditCase]:
    """Every operation on the (first `photos`) held-out photographs.

    Each is asked for in `wordings` phrases of each language, of `split`, "held_out" or "train"; the
    photographs are never trained on. HywuError where an operation has not so many phrases.
    """
    require_phrases("wordings", wordings, split, operations, languages)
    cases = []
    for index, photo in enumerate(load_tensors("held_out")[:photos]):
        image = fit_image(photo[None].float() / 255, area)
        for operation in operations:
            source, target = make_pair(OPS[operation], image, torch.Generator().manual_seed(index))
            for language in languages:
                for phrase in phrases(split, [operation], (language,))[:wordings]:
                    cases.append(EditCase(index, phrase, image[0], source[0], target[0]))
    return cases


@dataclass(frozen=True)
class Judged:
    """One case after editing, all in dB of PSNR to the exact result."""

    case: EditCase
    result: Tensor  # (3, H, W)
    score: float
    untouched: float


def mean_untouched(judged: Sequence[Judged]) -> float:
    """PSNR in dB of the untouched photographs where they are to change; elsewhere it is no measure."""
    return fmean([j.untouched for j in judged if j.untouched < EQUAL] or [EQUAL])


def judge(
    pipeline: HywuPipeline,
    cases: Sequence[EditCase],
    *,
    frozen_base: bool = False,
    write: Callable[[Sequence[EditCase], Condition], Adapter] | None = None,
    steps: int = DEFAULT_STEPS,
    batch: int = 8,
    seed: int = 0,
) -> list[Judged]:
    """Edit every case (in batches of one photograph, hence one size) and compare with the exact results.

    write: another way to an adapter for a batch of cases than the pipeline's generator.
    seed: of the noise the sampler starts from.
    """
    judged = []
    ordered = sorted(cases, key=lambda case: case.photo)
    groups = [[c for c in ordered if c.photo == photo] for photo in sorted({c.photo for c in ordered})]
    chunks = [group[i : i + batch] for group in groups for i in range(0, len(group), batch)]
    for chunk in tqdm(chunks, desc="editing held-out photographs", unit="batch"):
        source = torch.stack([case.source for case in chunk])
        target = torch.stack([case.target for case in chunk])
        prompts = [case.prompt for case in chunk]
        image = pipeline.edit(
            source,
            prompts,
            seed=seed,
            steps=steps,
            frozen_base=frozen_base,
            write=None if write is None else partial(write, chunk),
            area=None,
        ).image.cpu()
        scores = zip(psnr(image, target).tolist(), psnr(source, target).tolist(), strict=True)
        judged += [Judged(c, r, s, u) for c, r, (s, u) in zip(chunk, image, scores, strict=True)]
    return judged
