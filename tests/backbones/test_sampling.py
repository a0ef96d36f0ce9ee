"""The sampler: ComfyUI's times, exact on straight flows."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core.backbones.sampling import euler, seeded_noise, simple_sigmas
from hywu_core.errors import HywuError


@given(st.integers(1, 1000))
def test_times_fall_from_one_to_zero(steps):
    sigmas = simple_sigmas(steps)
    assert len(sigmas) == steps + 1
    assert (sigmas[0], sigmas[-1]) == (1, 0)
    assert all(a > b for a, b in pairwise(sigmas))


def test_times_are_comfyui_simple_scheduler():
    # `simple` takes entries -(1 + int(i * 1000 / steps)) of the table k/1000, k = 1 .. 1000.
    table = [k / 1000 for k in range(1, 1001)]
    assert simple_sigmas(7)[:-1] == [table[-(1 + int(i * 1000 / 7))] for i in range(7)]


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_steps_are_named(steps):
    with pytest.raises(HywuError, match=str(steps)):
        simple_sigmas(steps)


@settings(deadline=None)
@given(st.integers(1, 12))
def test_a_straight_flow_ends_at_its_image(steps):
    image, noise = torch.randn(2, 16, 4, 4), seeded_noise((2, 16, 4, 4), 3)
    seen = []
    out = euler(lambda x, t: noise - image, noise, steps, seen.append)
    torch.testing.assert_close(out, image, atol=1e-4, rtol=1e-4)
    assert seen == list(range(1, steps + 1))


def test_noise_is_comfyui_noise():
    torch.manual_seed(42)
    assert torch.equal(seeded_noise((1, 16, 8, 8), 42), torch.randn(1, 16, 8, 8))


def test_times_can_be_given():
    image, noise = torch.randn(1, 16, 4, 4), seeded_noise((1, 16, 4, 4), 3)
    seen = []

    def velocity(x, t):
        seen.append(t)
        return noise - image

    out = euler(velocity, noise, [1.0, 0.9, 0.2, 0.0])
    torch.testing.assert_close(out, image, atol=1e-5, rtol=1e-5)
    assert seen == [1.0, 0.9, 0.2]
