"""Stock loaders open the embedded models' files, and ComfyUI computes with them what the library does."""

from __future__ import annotations

import pytest

from .inside import measure

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def measured(install, world):
    return measure(install, "embedded_files.py", world.folder)


def test_the_backbone_predicts_as_in_diffusers_with_a_reference(measured):
    assert measured["velocity_size"] > 1e-2
    assert measured["velocity_gap"] <= 1e-4


def test_sampling_runs_over_the_same_times(measured):
    assert measured["sigmas_gap"] <= 1e-6


def test_latents_are_the_autoencoders_own_inside_the_model(measured):
    assert measured["latents_gap"] <= 1e-5
    assert measured["images_gap"] <= 1e-5
