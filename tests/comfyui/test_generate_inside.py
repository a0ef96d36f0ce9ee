"""Generate LoRA in ComfyUI's own process (see `inside/generate.py`)."""

from __future__ import annotations

import pytest

from hywu_core import LoraSpec
from hywu_core.lora import Band, ModuleShape

from . import tiny
from .inside import measure

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def measured(install, tmp_path_factory):
    work = tmp_path_factory.mktemp("generate")
    spec = LoraSpec((Band("blocks", 2, (ModuleShape("attn.to_q", 32, 32),)),), rank=2, alpha=2)
    tiny.write_generator(work / "random_generator.safetensors", spec)
    return measure(install, "generate.py", work)


def test_heat_maps_are_no_outputs_of_a_job(measured):
    """ComfyUI counts every dict that a node shows, and tells the user of so many pictures."""
    if measured["outputs"] is None:
        pytest.skip("this ComfyUI does not count a job's outputs")
    assert measured["outputs"] == 1


def test_comfyui_makes_room_for_the_forward_pass_too(measured):
    """For one condition at a time, however many there are."""
    assert measured["planned"] > 0
    assert measured["asked"] == [measured["planned"]]


def test_a_repeated_condition_does_not_even_load_the_generator(measured):
    """It may be 16 GB, which would come back and drive out the model that is edited with."""
    assert measured["again"].endswith("0 generated, 2 from the cache")
    assert len(measured["asked"]) == 1
