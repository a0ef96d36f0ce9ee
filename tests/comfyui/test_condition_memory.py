"""What HY-WU Condition and Generate LoRA do to memory, progress and caches, measured inside ComfyUI."""

from __future__ import annotations

import shutil

import pytest

from ..conditions.test_siglip2 import save_model
from .encoders import write_siglip2_generator
from .inside import measure

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def measured(install, world, tmp_path_factory):
    work = tmp_path_factory.mktemp("condition")
    shutil.copy(world / "random_generator.safetensors", work / "embedded.safetensors")
    write_siglip2_generator(work / "siglip2.safetensors", world, "google/tiny-siglip2")
    save_model(work / "tiny-siglip2")
    return measure(install, "condition.py", work)


@pytest.mark.parametrize("encoder", ["embedded", "siglip2"])
def test_lists_of_pictures_of_all_sizes_are_a_batch_of_the_same_bits(measured, encoder):
    assert measured[f"{encoder} same digests"]
    assert measured[f"{encoder} prompts"] == ["make it dark", "a cat", "make it bright"]


def test_references_of_one_edit_follow_each_other(measured):
    assert measured["three references"] == [3, measured["one reference"] + 2 * 9]


def test_the_encoder_is_counted_and_freed_by_comfyui(measured):
    assert measured["counted"] == 1
    assert measured["shared"]
    assert measured["counted after unloading"] == 0
    assert measured["same after unloading"]
    assert measured["stays with its generator"]
    assert measured["gone with its generator"]


def test_progress_is_shown_block_by_block(measured):
    total = measured["progress"][-1][1]
    assert measured["progress"] == [[i, total] for i in range(1, total + 1)]
    assert total % 3 == 0


def test_a_cancel_stops_it_and_keeps_what_was_finished(measured):
    assert measured["cancelled"] == "yes"
    assert "2 generated, 1 from the cache" in measured["after the cancel"]


def test_what_was_seen_is_not_generated_again_and_the_same_bits(measured):
    assert "0 generated, 3 from the cache" in measured["repeated"]
    assert measured["same bits"]


def test_memory_is_bounded(measured):
    count, n_bytes = measured["memory"]
    assert 1 <= count < 30
    assert n_bytes <= 10**6


def test_disk_outlives_the_generator(measured):
    assert "1 generated, 0 from the cache" in measured["disk first"]
    assert "0 generated, 1 from the cache" in measured["disk second"]
    assert measured["disk same bits"]
    assert measured["files"] == 1


def test_a_setting_that_is_no_number_is_a_sentence(measured):
    assert "HYWU_CACHE_MEMORY_MB is 'much'; it must be megabytes" in measured["bad setting"]
