"""The side path under ComfyUI's samplers, in a process of ComfyUI's (see `inside/side_path_sampling.py`)."""

from __future__ import annotations

import pytest

from .inside import measure

pytestmark = pytest.mark.comfyui
NOISE = 1e-4  # of latents of size 1 after a guided sampling in float32


@pytest.fixture(scope="module")
def measured(install, side_path_files):
    return measure(install, "side_path_sampling.py", side_path_files)


@pytest.mark.parametrize("way", ["rows", "area_rows", "split"])
def test_a_batch_with_a_lora_for_each_image_equals_single_runs(measured, way):
    assert measured[way] <= NOISE
    assert measured["rows_differ"] > 1e-2


@pytest.mark.parametrize("way", ["tiles of a batch", "tiles of a branch", "tiles of one image"])
def test_tiles_stacked_in_one_call_equal_tiles_one_by_one(measured, way):
    assert measured[way] <= NOISE


def test_a_branch_can_be_served_alone_or_by_an_adapter_of_its_own(measured):
    assert measured["halves"] <= NOISE
    assert measured["pair"] <= NOISE
    assert measured["pair_differs"] > 1e-2
    assert measured["negative_differs"] > 1e-2
    assert measured["negative_without_guidance"] == 0


def test_it_is_in_place_in_its_part_of_sampling_only(measured):
    assert measured["steps"] == [True, True, False, False]
    assert measured["other_steps"] == [False, False, True, True]
    assert measured["tiled"] <= NOISE
    assert measured["parts_differ"] > 1e-3
    assert measured["never"]


def test_merged_into_the_weights_it_is_the_same(measured):
    assert measured["merged"] <= NOISE
    assert measured["huge"] <= NOISE
    assert measured["huge_beside"] <= NOISE
    assert measured["merge_report"][-1] == "Merged into the weights."
    assert "Merged into the weights (a side path of rank 304 costs" in measured["huge_report"][-1]


def test_what_cannot_be_merged_is_a_sentence(measured):
    batch, branch, part, beyond = measured["refused"]
    assert "single LoRA, and here are 3" in batch
    assert "both branches" in branch
    assert "0 to 0.5" in part
    assert "1.5" in beyond


def test_the_report_says_what_was_found_and_what_runs(measured):
    found, runs = measured["report"]
    assert found == "All 39 targets of the LoRA found in the Flux model."
    assert "3 LoRAs, one for each image, of rank 4 on the positive branch, from 25% to 100%" in runs


def test_nothing_is_left(measured):
    assert measured["after"] == 0
    assert measured["shadowed"] == []


def test_after_a_cancel_between_two_steps_nothing_is_remembered(measured):
    """Views would keep the memory of a side path that ComfyUI has offloaded, and believes to be free."""
    assert measured["remembered"] == [True, False]


def test_a_lora_with_nothing_to_do_is_told(measured):
    positive, negative = measured["idle"]["positive"], measured["idle"]["negative"]
    assert positive[0] == "The LoRA for the negative branch is not used: the branch is positive."
    assert negative[0] == "The LoRA for the positive branch is not used: the branch is negative."


def test_strength_0_still_says_what_was_found(measured):
    found, nothing = measured["zero_report"]
    assert found.startswith("All 39 targets")
    assert nothing == "Strength 0: the model is as it was."
    assert measured["zero_is_base"]
    assert "not for the connected model" in measured["idle"]["foreign"]
