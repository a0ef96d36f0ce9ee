from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hywu_core.errors import HywuError
from hywu_core.heat_map import ANCHORS, colour, draw_heat_map
from hywu_core.lora.norm_table import NormTable, arrange

QWEN = 60, ("attn.to_q", "attn.to_k", "img_mlp.net.2")
BRIGHT = colour(1.0)


def table(layers: int, modules: tuple[str, ...], strong: str = "", title: str = "adapter") -> NormTable:
    """Small norms, and one of 1 where it is `strong`."""
    names = [f"blocks.{layer}.{module}" for layer in range(layers) for module in modules]
    return arrange({name: 1.0 if name == strong else 0.1 for name in names}, title)


def bright_cells(picture) -> np.ndarray:
    """(row, column) of the pixels in the scale's brightest colour, without the scale itself."""
    pixels = np.asarray(picture)
    found = np.argwhere((pixels == BRIGHT).all(axis=-1))
    return found[found[:, 0] < pixels.shape[0] - 100]


def lightness(rgb: tuple[int, int, int]) -> float:
    """Of OKLab, 0 to 1 (Ottosson 2020)."""
    c = np.asarray(rgb) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    return float(np.array([0.2104542553, 0.793617785, -0.0040720468]) @ np.cbrt(cones @ linear))


def test_equal_steps_of_the_norm_are_equal_steps_of_lightness():
    steps = [b - a for a, b in pairwise(lightness(colour(i / 16)) for i in range(17))]
    assert min(steps) > 0.03
    assert max(steps) < 2 * min(steps)


def test_the_page_draws_in_the_same_colours():
    script = Path(__file__).resolve().parents[1] / "web" / "js" / "heat_map.js"
    anchors = script.read_text(encoding="utf-8").partition("ANCHORS = [")[2].partition("]")[0]
    assert tuple(re.findall("#[0-9a-f]{6}", anchors)) == ANCHORS


def test_values_outside_the_scale_have_its_ends():
    assert colour(-1) == colour(0)
    assert colour(2) == colour(1)


def test_the_strongest_module_is_the_brightest_cell_at_its_place():
    first, last = (
        bright_cells(draw_heat_map([table(*QWEN, strong=strong)]))
        for strong in ("blocks.0.attn.to_q", "blocks.59.img_mlp.net.2")
    )
    assert len(first) == len(last) > 100
    down, right = last.min(axis=0) - first.min(axis=0)
    assert down == 2 * 22
    assert right == 59 * 12


def test_two_adapters_share_one_scale():
    weak = arrange({"blocks.0.a": 0.5, "blocks.1.a": 0.5}, "weak")
    strong = arrange({"blocks.0.a": 1.0, "blocks.1.a": 0.5}, "strong")
    alone, pair = bright_cells(draw_heat_map([weak])), draw_heat_map([weak, strong])
    assert len(alone)
    cells = bright_cells(pair)
    assert cells[:, 1].min() > pair.width // 2


def test_an_update_of_zero_is_dark_and_a_gap_is_not():
    zero = draw_heat_map([arrange({"blocks.0.a": 0.0, "blocks.1.a": 0.0})])
    assert not len(bright_cells(zero))
    gap = draw_heat_map([arrange({"blocks.0.a": 0.0, "blocks.1.b": 0.0})])
    shades = {tuple(pixel) for pixel in np.asarray(gap).reshape(-1, 3)}
    assert colour(0) in shades
    assert (52, 54, 59) in shades


def test_many_layers_and_long_names_still_fit():
    picture = draw_heat_map([table(200, ("a_module_with_quite_a_long_path.inside.of.it.proj",))] * 2)
    assert picture.width < 4400
    border = np.asarray(picture)[:, -10:]
    assert (border == border[0, 0]).all()


def test_titles_in_any_script_are_drawn():
    draw_heat_map([arrange({"blocks.0.a": 1.0}, "变成黑白 🙂")])


def test_nothing_to_draw_is_refused():
    with pytest.raises(HywuError, match="no adapter"):
        draw_heat_map([])
