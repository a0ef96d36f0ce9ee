"""A picture of the norms of an update: modules are rows, layers are columns, bands stand below each other.

Several tables stand side by side on one common scale. Drawn with Pillow alone, which every ComfyUI has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from .errors import HywuError
from .lora.norm_table import NormBand, NormTable

Colour = tuple[int, int, int]

# From dark blue to light yellow: lightness (OKLab's) rises evenly, and people with any of the usual colour
# blindnesses tell these two hues apart. The web extension has the same anchors.
ANCHORS = ("#141235", "#1e2a63", "#1c4a7d", "#1a6a86", "#2f8a83", "#63a878", "#a5c16b", "#dcd977", "#fff3ad")
_BACKGROUND, _TEXT, _FAINT, _GAP = (30, 31, 34), (232, 233, 236), (160, 163, 170), (52, 54, 59)

_MARGIN, _ROW, _LINE, _LEGEND = 24, 22, 26, 14
_SMALL, _LARGE = 14, 19
_CELLS = 720  # pixels the widest band aims at
_WIDEST, _NARROWEST = 64, 8  # of a cell


def colour(part: float) -> Colour:
    """The colour of a value from 0 to 1."""
    anchors = _rgb_anchors()
    place = min(max(part, 0.0), 1.0) * (len(anchors) - 1)
    lower = min(int(place), len(anchors) - 2)
    mix = place - lower
    return tuple(round(a + (b - a) * mix) for a, b in zip(anchors[lower], anchors[lower + 1], strict=True))


def draw_heat_map(tables: Sequence[NormTable]) -> Image.Image:
    """The picture of one table or of several beside each other, in RGB.

    Raises `HywuError` if there is no table.
    """
    if not tables:
        raise HywuError("There is no adapter to draw.")
    largest = max(table.largest for table in tables)
    panels = [_Panel(table, largest) for table in tables]
    width = sum(panel.width for panel in panels) + _MARGIN * (len(panels) - 1)
    height = max(panel.height for panel in panels)
    scale_top = _MARGIN + height + 2 * _LINE
    size = (max(width, 320) + 2 * _MARGIN, scale_top + _LEGEND + _LINE + _MARGIN)
    image = Image.new("RGB", size, _BACKGROUND)
    brush = ImageDraw.Draw(image)
    left = _MARGIN
    for panel in panels:
        panel.paint(brush, left, _MARGIN)
        left += panel.width + _MARGIN
    _legend(brush, _MARGIN, scale_top, min(360, size[0] - 2 * _MARGIN), largest)
    return image


@dataclass(frozen=True)
class _Panel:
    """One table on the picture; `largest` is the brightest value of the scale."""

    table: NormTable
    largest: float

    @property
    def cell(self) -> int:
        """The width of a layer: the same in all bands, so that they can be compared."""
        layers = max(len(band.layers) for band in self.table.bands)
        return min(max(_CELLS // layers, _NARROWEST), _WIDEST)

    @property
    def labels(self) -> int:
        """The width of the module names."""
        return 12 + max(_width(module) for band in self.table.bands for module in band.modules)

    @property
    def heading(self) -> str:
        """Below the title."""
        return f"total norm {self.table.total:.4g}, largest {self.table.largest:.4g}"

    @property
    def width(self) -> int:
        """With the title, whichever is wider."""
        columns = max(len(band.layers) for band in self.table.bands) * self.cell
        texts = [_width(self.table.title, _LARGE), _width(self.heading)]
        texts += [_width(_title(band)) for band in self.table.bands]
        return max(self.labels + columns, *texts)

    @property
    def height(self) -> int:
        """Title and heading, then the bands."""
        return 2 * _LINE + sum(_LINE // 2 + self._band_height(band) for band in self.table.bands)

    def _band_height(self, band: NormBand) -> int:
        """Its name, its rows and, where it has several, the numbers of its layers."""
        return _LINE + len(band.modules) * _ROW + (_LINE if len(band.layers) > 1 else 0)

    def paint(self, brush: ImageDraw.ImageDraw, left: int, top: int) -> None:
        """Draw with the upper left corner there."""
        brush.text((left, top), self.table.title, fill=_TEXT, font=_font(_LARGE))
        brush.text((left, top + _LINE), self.heading, fill=_FAINT, font=_font(_SMALL))
        top += 2 * _LINE
        for band in self.table.bands:
            top += _LINE // 2
            brush.text((left, top), _title(band), fill=_TEXT, font=_font(_SMALL))
            self._paint_band(brush, band, left, top + _LINE)
            top += self._band_height(band)

    def _paint_band(self, brush: ImageDraw.ImageDraw, band: NormBand, left: int, top: int) -> None:
        start = left + self.labels
        for row, module in enumerate(band.modules):
            y = top + row * _ROW
            brush.text((start - 10, y + _ROW // 2), module, fill=_FAINT, font=_font(_SMALL), anchor="rm")
            for column, norms in enumerate(band.norms):
                self._paint_cell(brush, start + column * self.cell, y, norms[row])
        if len(band.layers) > 1:
            self._paint_layers(brush, band, start, top + len(band.modules) * _ROW)

    def _paint_cell(self, brush: ImageDraw.ImageDraw, x: int, y: int, norm: float | None) -> None:
        fill = _GAP if norm is None else colour(norm / self.largest if self.largest else 0.0)
        brush.rectangle((x, y, x + self.cell - 2, y + _ROW - 2), fill=fill)
        if norm is None:  # grey alone could be taken for a small norm
            x, y = x + self.cell // 2 - 1, y + _ROW // 2 - 1
            brush.line((x - 2, y, x + 2, y), fill=_FAINT)

    def _paint_layers(self, brush: ImageDraw.ImageDraw, band: NormBand, start: int, top: int) -> None:
        """Number as many of the columns as have room, evenly."""
        room = 10 + _width(str(max(band.layers)))
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if s * self.cell >= room or s == 1000)
        for column in range(0, len(band.layers), step):
            x = start + column * self.cell + self.cell // 2 - 1
            number = str(band.layers[column])
            brush.text((x, top + 3), number, fill=_FAINT, font=_font(_SMALL), anchor="ma")


def _title(band: NormBand) -> str:
    layers = f", {len(band.layers)} layers" if len(band.layers) > 1 else ""
    return f"{band.name or 'layers'}{layers}"


def _legend(brush: ImageDraw.ImageDraw, left: int, top: int, width: int, largest: float) -> None:
    """The scale from 0 to the largest norm, and what it is of."""
    for x in range(width):
        brush.line((left + x, top, left + x, top + _LEGEND), fill=colour(x / (width - 1)))
    for part, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
        place = (left + part * width, top + _LEGEND + 5)
        brush.text(place, f"{part * largest:.3g}", fill=_FAINT, font=_font(_SMALL), anchor=anchor)
    brush.text((left, top - 5), "norm of the update", fill=_FAINT, font=_font(_SMALL), anchor="ld")


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _width(text: str, size: int = _SMALL) -> int:
    return round(_font(size).getlength(text))


@lru_cache
def _rgb_anchors() -> list[Colour]:
    return [tuple(int(code[i : i + 2], 16) for i in (1, 3, 5)) for code in ANCHORS]
