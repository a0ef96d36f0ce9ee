"""Working sizes: any photograph, about the same area, multiples of 16, the same shape."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hywu_core.embedded.sizing import MULTIPLE, WORKING_AREA, fit_image, working_size


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_sizes_are_multiples_of_16_and_of_about_the_working_area(height, width):
    h, w = working_size(height, width)
    assert (h % MULTIPLE, w % MULTIPLE) == (0, 0)
    assert 0.88 < h * w / WORKING_AREA < 1.12


@given(st.integers(200, 6000), st.floats(0.4, 2.5))
def test_the_shape_is_kept(height, aspect):
    width = round(height * aspect)
    h, w = working_size(height, width)
    assert abs(w / h / (width / height) - 1) < 0.12


@given(st.integers(1, 700), st.integers(1, 700))
def test_fitting_keeps_the_range_and_a_constant_colour(height, width):
    fitted = fit_image(torch.full((1, 3, height, width), 0.25))
    assert fitted.shape[-2:] == working_size(height, width)
    torch.testing.assert_close(fitted, torch.full_like(fitted, 0.25), atol=1e-5, rtol=0)


def test_a_fitted_photograph_is_left_alone():
    image = torch.rand(1, 3, 256, 256)
    assert torch.equal(fit_image(image), image)
