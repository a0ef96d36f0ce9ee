"""Replaced files are loaded again, and others are not (see `inside/replaced.py`)."""

from __future__ import annotations

import pytest

from .inside import measure

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def measured(install, tmp_path_factory):
    return measure(install, "replaced.py", tmp_path_factory.mktemp("replaced"))


@pytest.mark.parametrize("kind", ["adapter", "generator"])
def test_what_is_as_it_was_is_not_loaded_again(measured, kind):
    assert measured[f"{kind} untouched"]


def test_a_name_that_comes_by_a_link_is_no_reason_to_load_again(measured):
    assert measured["linked names"]


def test_a_peft_folder_is_also_its_configuration(measured):
    """The scale of the LoRA stands in it."""
    assert measured["adapter"]


def test_a_shard_may_be_replaced_by_an_older_one(measured):
    assert measured["generator"]
