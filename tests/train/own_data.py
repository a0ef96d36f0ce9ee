"""Small real data sets in every convention, and small random models in their real layout on disk."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageEnhance

from ..backbones.tiny_folders import WRITERS
from ..conditions.test_siglip2 import save_model
from ..data.paired_writers import Edit
from .edited_photos import photograph

NAMES = ("cat", "coffee", "pagoda", "mountains", "cat", "coffee")
QUICK = ("--resolution", 64, "--batch-size", 2, "--device", "cpu", "--precision", "fp32")
QUICK += tuple(
    part
    for setting in ("backbone_dtype=fp32", "d_model=32", "n_layers=1", "n_heads=2", "rank=4", "held_out=1")
    for part in ("--set", setting)
)
QUICK += ("--set", "sample_steps=2", "--set", "warmup=1")


def quick(*more: object) -> tuple[object, ...]:
    """`QUICK` and more arguments, without the settings of it that those name too."""
    given = list(map(str, more))
    named = {value.partition("=")[0] for flag, value in itertools.pairwise(given) if flag == "--set"}
    kept: list[object] = []
    for flag, value in zip(QUICK[::2], QUICK[1::2], strict=True):
        if flag != "--set" or value.partition("=")[0] not in named:
            kept += [flag, value]
    return (*kept, *more)


def write_data(
    root: Path, convention: Callable[..., tuple[Path, list]], controls: int = 1, count: int = 6
) -> Path:
    """A data set in a convention: photographs, darker ones as targets, two different instructions.

    A second control is the photograph turned round.
    """
    edits = [
        Edit(f"{name}_{number}", controls, ("make it darker", "less light, please")[number % 2])
        for number, name in enumerate(NAMES[:count])
    ]
    path, expected = convention(root, edits)
    for number, (target, sources, _) in enumerate(sorted(expected)):
        picture = photograph(NAMES[number % 4])
        for place, source in enumerate(sources):
            picture.rotate(180 * place).save(root / source)
        ImageEnhance.Brightness(picture).enhance(0.5).save(root / target)
    return path


def write_models(root: Path, kinds: Sequence[str] = tuple(WRITERS)) -> dict[str, Path]:
    """Folders of tiny backbones by kind, and of a SigLIP2 under its name."""
    models = {kind: WRITERS[kind](root / kind) for kind in kinds}
    return models | {"siglip2": save_model(root / "siglip2-tiny")}


def is_picture(path: Path) -> bool:
    """Whether an image can be read and is not of one colour."""
    with Image.open(path) as image:
        return len(image.convert("L").getcolors()) > 10
