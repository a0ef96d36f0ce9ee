"""The side path on other weights, modules and devices, in ComfyUI (see `inside/side_path_kinds.py`)."""

from __future__ import annotations

import pytest

from .inside import measure

pytestmark = pytest.mark.comfyui
NOISE = 1e-5


@pytest.fixture(scope="module")
def measured(install, side_path_files):
    return measure(install, "side_path_kinds.py", side_path_files)


@pytest.mark.parametrize("kind", ["cast", "fast", "scaled"])
def test_on_8_bit_weights_it_is_the_formula_on_their_own_outputs(measured, kind):
    assert measured["quantised"][kind]["gap"] <= NOISE
    assert measured["quantised"][kind]["after"] == 0
    if kind == "cast":
        assert measured["quantised"][kind]["dtype"] == "torch.float8_e4m3fn"
    if kind == "scaled":
        assert "float8" in measured["quantised"][kind]["held_as"]


def test_int8_layers_that_a_side_path_cannot_reach_are_merged_or_refused(measured):
    """Their kernel takes the activation before them too, and their forward is never called."""
    found = measured["wan"]
    if not found:
        pytest.skip("This ComfyUI has no such layers.")
    assert found["effect"] > 0.01
    assert found["report"][-1].startswith("Merged into the weights (")
    assert "int8" in found["report"][-1].lower()
    assert found["gap"] <= NOISE
    assert found["after"] == 0
    assert "blocks.0.ffn.2" in found["refused"]["side path"]
    assert "choose the mode 'merge'" in found["refused"]["side path"]
    assert "this LoRA is for the positive one" in found["refused"]["branch"]
    assert found["other layers"][-1].startswith("Side path")


def test_on_convolutions_it_equals_the_merged_weights(measured):
    found = measured["convolutions"]
    assert found["found"] == found["wanted"]
    assert found["effect"] > 1e-2
    assert found["gap"] <= NOISE
    assert found["after"] == 0


@pytest.mark.parametrize("names", ["one", "both"])
def test_a_linear_of_two_layers_gets_each_update_once(measured, names):
    assert measured["shared"][names]["gap"] <= NOISE
    assert measured["shared"][names]["after"] == 0


@pytest.mark.parametrize("order", ["before", "after"])
def test_clones_for_other_gpus_have_tensors_of_their_own(measured, order):
    if not measured["other_gpus"]:
        pytest.skip("this ComfyUI has no clones for other GPUs")
    found = measured["other_gpus"][order]
    assert found["gap"] <= 10 * NOISE
    assert found["devices"] == ["cpu", "cpu:0"]
    assert found["models"] == found["sides"] == 2
    assert found["shadowed"] > 0
