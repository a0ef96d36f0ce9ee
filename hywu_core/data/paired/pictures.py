"""A picture that is not open yet: a file, or a cell of a table; its size is read from its header."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from ...errors import HywuError
from ...images import open_image, read_photo, to_tensor
from . import tables

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 256, 257  # tags
_SEPARATOR = "\0"  # in no file name


@dataclass(frozen=True, slots=True)
class Picture:
    """Where an image lies. Nothing is read before `read`, `size` or `tensor` is called."""

    path: str
    row: int = -1  # of a table; -1: `path` is the image itself
    column: str = ""
    item: int = -1  # of a list in the cell; -1: the cell is one image

    def __str__(self) -> str:
        if self.row < 0:
            return self.path
        return f"{self.path}, row {self.row}, {self.column}" + (f"[{self.item}]" if self.item >= 0 else "")

    def to_text(self) -> str:
        """One string that `from_text` reads back; a plain file is its path."""
        if self.row < 0:
            return self.path
        return _SEPARATOR.join((self.path, str(self.row), self.column, str(self.item)))

    @classmethod
    def from_text(cls, text: str) -> Picture:
        """The inverse of `to_text`."""
        if _SEPARATOR not in text:
            return cls(text)
        path, row, column, item = text.split(_SEPARATOR)
        return cls(path, int(row), column, int(item))

    def exists(self) -> bool:
        """Whether there is something to read, without reading it."""
        return self.row >= 0 or os.path.isfile(self.path)

    def read(self) -> bytes:
        """The bytes of the image file. HywuError if it is missing or cannot be read."""
        if self.row >= 0:
            return self._cell()
        try:
            return Path(self.path).read_bytes()
        except FileNotFoundError as error:
            raise HywuError(f"There is no image {self.path}.") from error
        except OSError as error:
            raise HywuError(f"The image {self.path} cannot be read: {error.strerror or error}.") from error

    def size(self) -> tuple[int, int]:
        """(width, height) as `tensor` will have them, from the header alone. HywuError as `tensor` raises."""
        if self.row >= 0:
            return upright_size(io.BytesIO(self._cell()), str(self))
        if not Path(self.path).is_file():
            raise HywuError(f"There is no image {self.path}.")
        return upright_size(self.path, self.path)

    def rgb(self) -> Image.Image:
        """The image upright in 8-bit RGB. HywuError when it is missing, no image, or damaged."""
        return read_photo(io.BytesIO(self.read()), str(self))

    def tensor(self) -> Tensor:
        """The image as (1, 3, H, W) float32 in [0, 1]. HywuError as `rgb`."""
        return to_tensor(self.rgb())

    def _cell(self) -> bytes:
        return tables.read_image(Path(self.path), self.row, self.column, self.item)


def upright_size(source: str | BinaryIO, name: str) -> tuple[int, int]:
    """(width, height) of an image turned by its EXIF; only the header is read. HywuError if it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(source) as image:
                # A PNG without EXIF in its header would be decoded whole to look for it behind the pixels.
                exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
                # Pillow gives a TIFF's size upright, from some version on: its own tags have it as it lies.
                width, height = _lying(image) if image.format == "TIFF" else image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise HywuError(f"{name} is not an image that can be read: {error}.") from error
    return (height, width) if exif.get(_ORIENTATION) in _SIDEWAYS else (width, height)


def _lying(image: TiffImageFile) -> tuple[int, int]:
    return image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
