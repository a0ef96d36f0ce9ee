"""Images at the size of their bucket, and what encoders make of them and of prompts, through the cache.

Every encoding is made once for each different content: a photograph that many samples share, or that was
renamed, or that another data set has too, is encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from ...images import to_tensor
from .buckets import Size, crop_box
from .cache import EncodingCache, cache_key
from .file_hashes import FileHashes
from .pictures import Picture

_FIT = "centre, lanczos"  # part of every key: another way to fit makes other encodings


def fit(picture: Picture, size: Size) -> Tensor:
    """The middle of a picture at `size`, as (1, 3, H, W) float32 in [0, 1]. HywuError as `Picture.rgb`."""
    image = picture.rgb()
    box = crop_box(*image.size, size)
    return to_tensor(image.resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box))


@dataclass
class Encodings:
    """Encodings of pictures and prompts, each looked up in the cache before it is made.

    encoder: a text that says which encoder it is and with which weights, such as its id and their hash.
    """

    cache: EncodingCache
    hashes: FileHashes

    def image(self, picture: Picture, size: Size, encoder: str, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """`encode` of the picture at a size (1, 3, H, W): a latent."""
        key = self.image_key(picture, size, encoder)
        return self.cache.get_or_make(key, lambda: {"latent": encode(fit(picture, size))})["latent"]

    def condition(
        self,
        prompt: str,
        pictures: Sequence[Picture],
        sizes: Sequence[Size],
        encoder: str,
        encode: Callable[[str, list[Tensor]], Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        """`encode` of a prompt with any number of pictures at their sizes: tokens, mask, pooled text."""
        key = self.condition_key(prompt, pictures, sizes, encoder)
        return self.cache.get_or_make(
            key, lambda: encode(prompt, [fit(p, size) for p, size in zip(pictures, sizes, strict=True)])
        )

    def image_key(self, picture: Picture, size: Size, encoder: str) -> str:
        """What `image` is found by in the cache."""
        return cache_key([self.hashes.of(picture)], encoder, {"kind": "image", "size": size, "fit": _FIT})

    def condition_key(
        self, prompt: str, pictures: Sequence[Picture], sizes: Sequence[Size], encoder: str
    ) -> str:
        """What `condition` is found by in the cache."""
        contents = [
            prompt.encode("utf-8", "surrogatepass"),
            *(self.hashes.of(picture) for picture in pictures),
        ]
        return cache_key(contents, encoder, {"kind": "condition", "sizes": list(sizes), "fit": _FIT})
