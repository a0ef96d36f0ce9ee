"""The side path on ComfyUI's own FLUX, measured in a process of ComfyUI's (see `inside/side_path.py`)."""

from __future__ import annotations

import pytest

from .inside import measure

pytestmark = pytest.mark.comfyui
NOISE = 1e-5


@pytest.fixture(scope="module")
def measured(install, side_path_files):
    return measure(install, "side_path.py", side_path_files)


def test_every_target_has_a_place_in_the_model(measured):
    assert measured["found"] == measured["targets"] == 39


def test_it_equals_the_stock_loader_merging_the_saved_file(measured):
    assert measured["effect"] > 1e-2
    assert measured["stock"] <= NOISE
    assert measured["baked"] <= NOISE


def test_each_row_of_a_batch_gets_its_own_adapter_in_both_branches(measured):
    assert measured["rows"] <= NOISE
    assert measured["rows_differ"] > 1e-2
    assert "2 LoRAs" in measured["wrong_batch"]
    assert "batch of 3" in measured["wrong_batch"]


@pytest.mark.parametrize("way", ["twice", "over_stock", "under_stock", "over_bypass", "under_bypass"])
def test_it_stacks_with_itself_and_with_stock_loaders(measured, way):
    if way not in measured:
        pytest.skip("this ComfyUI has no bypass LoRA")
    assert measured[way] <= NOISE


def test_nothing_is_left_after_a_run_or_an_exception(measured):
    assert measured["after"] == measured["after_all"] == 0
    assert measured["shadowed"] == measured["shadowed_after_exception"] == []


def test_a_zero_update_changes_no_bit(measured):
    assert measured["zero"] == 0


def test_another_backbone_is_a_sentence_with_both_names_and_sizes(measured):
    assert "'another model'" in measured["foreign"]
    assert "Flux" in measured["foreign"]
    assert "'FLUX.1-dev'" in measured["wider"]
    assert "3072 -> 3072" in measured["wider"]
    assert "256 -> 256" in measured["wider"]
