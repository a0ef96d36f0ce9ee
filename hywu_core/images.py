"""Pictures in and out: any photograph to RGB in [0, 1], results to whole files or none, labelled sheets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import HywuError
from .storage import atomic_path, check_writable

_MARGIN, _CAPTION = 6, 20
# What holds a photograph as it is; PIL also writes documents, icons and formats of few colours.
_WRITTEN = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "TGA", "JPEG2000", "AVIF")
_MOST_PIXELS = 2**30


def load_photo(path: str | Path) -> Tensor:
    """A photograph as (1, 3, H, W) float32 in [0, 1]: upright by its EXIF, transparency on white, any mode.

    Raises HywuError when the file is missing, is no image, is damaged, or has more than a gigapixel.
    """
    path = Path(path)
    if not path.is_file():
        raise HywuError(f"There is no photograph at {path}.")
    return to_tensor(read_photo(path, str(path)))


def read_photo(source: str | Path | BinaryIO, name: str) -> Image.Image:
    """As `load_photo`, from a file or an open stream, to 8-bit RGB; `name` is what an error calls it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with a file is said once, below
            with open_image(source) as opened:
                if opened.width * opened.height > _MOST_PIXELS:
                    raise HywuError(
                        f"The photograph {name} has {opened.width} x {opened.height} pixels; "
                        f"at most {_MOST_PIXELS:,} are read."
                    )
                return _as_seen(opened)
    except UnidentifiedImageError as error:
        raise HywuError(
            f"{name} is not an image that can be read; give a JPEG, PNG, WebP or TIFF file."
        ) from error
    except HywuError:
        raise
    except Image.DecompressionBombError as error:  # TIFF's and WebP's readers ask for it again
        raise HywuError(f"The photograph {name} is too large: {error}") from error
    except Exception as error:  # every decoder has its own for a damaged file, AVIF's a RuntimeError
        raise _damaged(name, error) from error


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    """As `read_photo`, of a picture that PIL has opened or made; it stays as it is. Raises HywuError too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _as_seen(image)
    except Exception as error:  # files are decoded now
        raise _damaged(name, error) from error


def _as_seen(image: Image.Image) -> Image.Image:
    """Upright, 8-bit RGB."""
    return _flatten(ImageOps.exif_transpose(image))


def _damaged(name: str, error: Exception) -> HywuError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return HywuError(f"The photograph {name} is damaged: {reason}.")


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """As `Image.open`, without its limit on pixels, which phones exceed and all of the process shares.

    TIFF and WebP keep the limit: their readers ask for it themselves.
    """
    try:
        return Image.open(source)
    except Image.DecompressionBombError:  # so it has found a reader, and only refuses to hand it out
        if isinstance(source, (str, Path)):
            with open(source, "rb") as file:
                start = file.read(16)
        else:
            source.seek(0)
            start = source.read(16)
            source.seek(0)
        readers = (Image.OPEN[kind] for kind in _WRITTEN if kind in Image.OPEN)
        reader = next((reader for reader, accepts in readers if accepts and accepts(start)), None)
        if reader is None:
            raise
        return reader(source, "")


def _flatten(image: Image.Image) -> Image.Image:
    """Any PIL mode to RGB."""
    if image.mode == "F" or image.mode.startswith("I"):  # PIL's own conversion would clip 16-bit scans
        values = np.asarray(image).astype(np.float32)
        shades = np.nan_to_num(values / _white(image.mode, values)).clip(0, 1) * 255
        return Image.fromarray(shades.astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _white(mode: str, values: np.ndarray) -> float:
    """The value of white where a grey mode does not say it: 1, 8 or 16 bits.

    In whole numbers the smallest that holds the largest value, but 16 bits for what is stored in them. In
    floating point the smallest of which 99 of 100 finite values are at most the double: highlights and the
    overshoot of sharpening lie beyond white, and a few wrong pixels say nothing.
    """
    if mode.startswith("I;16"):
        return 65535.0
    if mode == "I":
        return 255.0 if values.max() <= 255 else 65535.0
    finite = values[np.isfinite(values)]
    usual = np.percentile(finite, 99, method="lower") if finite.size else 0.0
    return next(white for white in (1.0, 255.0, 65535.0) if usual <= 2 * white or white == 65535)


def to_tensor(image: Image.Image) -> Tensor:
    """An 8-bit RGB image to (1, 3, H, W) float32 in [0, 1]."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1)[None].float().div_(255)


def to_pil(image: Tensor) -> Image.Image:
    """An image (3, H, W) in [0, 1] to 8-bit RGB."""
    return Image.fromarray((image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def check_image_path(path: str | Path) -> Path:
    """A path an image can be written to; HywuError for a missing folder or a suffix of no image format."""
    path = check_file_path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in _WRITTEN or kind not in Image.SAVE:  # some builds of PIL lack an encoder
        raise HywuError(f"'{path.name}' does not end in an image format such as .png or .jpg.")
    return path


def check_file_path(path: str | Path) -> Path:
    """A path a file can be written to; HywuError without a folder to write into, or if it is one."""
    path = Path(path)
    if not path.parent.is_dir():
        raise HywuError(f"The folder {path.parent} does not exist; make it first.")
    if path.is_dir():
        raise HywuError(f"{path} is a folder; give the name of a file.")
    check_writable(path)
    return path


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write a picture in the format of its suffix, whole or not at all."""
    path = check_image_path(path)
    kind = Image.registered_extensions()[path.suffix.lower()]
    options = {"quality": 95} if kind in ("JPEG", "WEBP", "AVIF") else {}
    with atomic_path(path) as temporary:
        image.save(temporary, format=kind, **options)


def sheet(rows: Sequence[tuple[str, Sequence[Tensor]]], columns: Sequence[str]) -> Image.Image:
    """A labelled grid: every row is (caption, images (3, H, W), one for each column)."""
    height = max(image.shape[1] for _, images in rows for image in images)
    width = max(image.shape[2] for _, images in rows for image in images)
    cell_w, cell_h = width + _MARGIN, height + _CAPTION + _MARGIN
    page = Image.new("RGB", (len(columns) * cell_w + _MARGIN, _CAPTION + len(rows) * cell_h), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for column, heading in enumerate(columns):
        draw.text((_MARGIN + column * cell_w, 3), heading, "black", font)
    for row, (caption, images) in enumerate(rows):
        top = _CAPTION + row * cell_h
        draw.text((_MARGIN, top + 3), _drawable(caption, font), "dimgray", font)
        for column, image in enumerate(images):
            page.paste(to_pil(image), (_MARGIN + column * cell_w, top + _CAPTION))
    return page


def _drawable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """One line of what the built-in font has glyphs for; it draws the same box for all others."""
    box = bytes(font.getmask("\U0010ffff"))
    return "".join(letter for letter in " ".join(text.split()) if bytes(font.getmask(letter)) != box)


def save_sheet(
    rows: Sequence[tuple[str, Sequence[Tensor]]], columns: Sequence[str], path: str | Path
) -> None:
    """`sheet` into a file."""
    save_image(sheet(rows, columns), path)
