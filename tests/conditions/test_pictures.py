import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core.conditions.pictures import cut_patches, patch_grid, resize

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
