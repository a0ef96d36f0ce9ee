import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hywu_core.conditions.pictures import as_pictures, cut_patches, patch_grid, resize
from hywu_core.errors import HywuError
from hywu_core.images import load_photo

sides = st.integers(1, 3000)


@settings(deadline=None)
@given(height=sides, width=sides, patch=st.sampled_from([4, 14, 16]), max_patches=st.integers(1, 300))
def test_the_grid_is_as_large_as_allowed(height, width, patch, max_patches):
    rows, columns = patch_grid(height, width, patch, max_patches)
    assert 1 <= rows * columns <= max_patches
    # Another row and column at once never fit; a single one may, but would leave the aspect ratio.
    assert (rows + 1) * (columns + 1) > max_patches


@pytest.mark.parametrize(
    ("size", "grid"),
    [((512, 512), (16, 16)), ((300, 400), (14, 18)), ((10, 4000), (1, 256)), ((1, 1), (16, 16))],
)
def test_known_grids(size, grid):
    assert patch_grid(*size, 16, 256) == grid


usual_sides = st.integers(64, 3000)  # transformers magnifies a hundred times at most


@settings(deadline=None)
@given(height=usual_sides, width=usual_sides, max_patches=st.integers(1, 300))
def test_the_grid_is_that_of_transformers(height, width, max_patches):
    upstream = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")
    wanted = upstream.get_image_size_for_max_num_patches(height, width, 16, max_patches)
    assert tuple(16 * n for n in patch_grid(height, width, 16, max_patches)) == wanted


def test_patches_are_read_row_by_row():
    picture = torch.arange(6 * 4 * 3).view(6, 4, 3).permute(2, 0, 1) / 72
    patches = cut_patches(picture, (3, 2), 2)
    assert patches.shape == (6, 12)
    wanted = picture[:, 2:4, 2:4].permute(1, 2, 0).flatten() * 2 - 1  # second row, second column
    torch.testing.assert_close(patches[3], wanted)


def test_resizing_averages_and_keeps_the_range():
    checkerboard = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    small = resize(checkerboard.float().expand(3, -1, -1), (8, 8))
    assert small.abs().max() < 0.1  # grey, the middle of [-1, 1]
    assert resize(torch.ones(3, 5, 5), (7, 7)).eq(1).all()


def mirrored() -> Image.Image:
    image = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    image.getexif()[0x0112] = 6  # the camera was held upright
    return image


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16)),
        Image.new("RGBA", (6, 4), (0, 0, 0, 0)),
        Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).convert("LA"),
        mirrored(),
    ],
    ids=["16 bits", "transparent", "grey with alpha", "held upright"],
)
def test_a_picture_is_seen_as_its_file_is(tmp_path, image):
    image.save(tmp_path / "it.png", exif=image.getexif())
    before = image.tobytes()
    ((seen,),) = as_pictures([image], ["a"])
    assert torch.equal(seen, load_photo(tmp_path / "it.png")[0])
    assert image.tobytes() == before


def test_a_damaged_picture_is_a_sentence():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(file, "PNG")
    opened = Image.open(io.BytesIO(file.getvalue()[:2000]))
    with pytest.raises(HywuError, match="photograph of edit 1 is damaged"):
        as_pictures([Image.new("RGB", (4, 4)), opened], ["a", "b"])
