"""Aspect-ratio buckets: every image gets the size of its shape, so that images of a batch can be stacked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from ...errors import HywuError
from .collect import Sample

Size = tuple[int, int]  # height, width, as tensors have them


@dataclass(frozen=True)
class Buckets:
    """Sizes that are multiples of `divisor` and hold at most `area` pixels."""

    area: int  # pixels, as 1024 * 1024
    divisor: int = 16
    longest: float = 4.0  # long side over short side; images of a longer shape are cropped to it
    upscale: bool = True  # False: an image smaller than its bucket keeps its size, cut to multiples

    def __post_init__(self) -> None:
        if self.divisor < 1 or self.area < self.divisor**2:
            raise HywuError(
                f"An area of {self.area} pixels holds no square of {self.divisor} x {self.divisor}."
            )
        if not 1 <= self.longest < math.inf:
            raise HywuError(f"The longest shape is {self.longest}; it must be a ratio of at least 1.")

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """All sizes: for every width the largest height that fits; from tall to wide."""
        d = self.divisor
        found = set()
        widest = math.isqrt(int(self.area * self.longest)) // d * d
        narrowest = math.isqrt(int(self.area / self.longest)) // d * d  # less where rounding made it shorter
        for width in range(max(d, narrowest - d), widest + 1, d):
            height = self.area // width // d * d
            if not height:
                break
            if max(width / height, height / width) <= self.longest:
                found |= {(height, width), (width, height)}  # every shape is there lying and standing
        side = math.isqrt(self.area) // d * d
        return tuple(sorted(found | {(side, side)}, key=lambda size: (size[1] / size[0], size)))

    def size(self, width: int, height: int) -> Size:
        """The (height, width) that an image of `width` x `height` pixels is scaled and cropped to."""
        return _bucket(self, width, height)


@lru_cache(maxsize=4096)  # a million photographs have few different sizes
def _bucket(buckets: Buckets, width: int, height: int) -> Size:
    if not buckets.upscale and width * height < buckets.area:
        d = buckets.divisor
        own = height // d * d, width // d * d
        if min(own) and max(own) / min(own) <= buckets.longest:
            return own
    shape = math.log(width / height)
    return min(
        buckets.sizes,
        key=lambda size: (round(abs(math.log(size[1] / size[0]) - shape), 9), -size[0] * size[1]),
    )


@dataclass(frozen=True)
class Layout:
    """The shapes of a sample's tensors; samples of one layout can be stacked."""

    target: Size
    controls: tuple[Size, ...]


def layout_of(sample: Sample, target: Buckets, controls: Buckets | None = None) -> Layout:
    """The sizes of a sample's images, from the headers of their files.

    controls: buckets of their own, as Qwen-Image-Edit has them; None: they get the size of the target.
    HywuError where an image cannot be read.
    """
    size = target.size(*sample.target.size())
    if controls is None:
        return Layout(size, (size,) * len(sample.controls))
    return Layout(size, tuple(controls.size(*control.size()) for control in sample.controls))


def group(layouts: Iterable[Layout]) -> tuple[list[Layout], list[int]]:
    """(the different layouts in order of appearance, for every sample the number of its layout)."""
    numbers: dict[Layout, int] = {}
    groups = [numbers.setdefault(layout, len(numbers)) for layout in layouts]
    return list(numbers), groups


def crop_box(width: int, height: int, size: Size) -> tuple[float, float, float, float]:
    """The middle part (left, top, right, bottom) of an image that has the shape of `size`, in pixels.

    Never outside the image: width / w * w can be a little more than width, and Pillow refuses such a box.
    """
    scale = min(width / size[1], height / size[0])
    left, top = max(0.0, (width - size[1] * scale) / 2), max(0.0, (height - size[0] * scale) / 2)
    return left, top, width - left, height - top
