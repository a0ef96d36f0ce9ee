"""The side path among models, in a process of ComfyUI's (see `inside/side_path_models.py`)."""

from __future__ import annotations

import pytest

from .inside import measure

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def measured(install, tmp_path_factory):
    return measure(install, "side_path_models.py", tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("kind", ["schnell", "chroma"])
def test_what_a_relative_of_flux_lacks_is_told(measured, kind):
    """ComfyUI's table of a FLUX's modules is by its sizes: it names some that relatives do not have."""
    found, runs = measured["relatives"][kind]
    assert found.startswith("1 of the LoRA's 2 targets found in the ")
    assert "1 are not in it and have no effect, such as t" in found
    assert runs.startswith("Side path")


def test_layers_that_run_before_the_model_calls_are_merged_or_refused(measured):
    """A side path is in place while the model is called: Anima's own adapter of the text runs before that."""
    if not (found := measured["before sampling"]):
        pytest.skip("this ComfyUI has no Anima")
    assert found["report"][-1].startswith("Merged into the weights (a side path does not reach 1 of the lay")
    assert found["effect"] > 1e-4
    assert found["refused"]["side path"].endswith("choose the mode 'merge', or auto, which does.")
    assert "before it samples" in found["refused"]["side path"]
    assert "and merging takes both branches" in found["refused"]["branch"]
    assert found["in every call"][-1].startswith("Side path")


@pytest.mark.parametrize("kind", ["as deep", "shallower"])
def test_a_second_model_of_the_same_sampling_is_left_alone(measured, kind):
    """Core's Dual Model CFG Guider calls the first model's wrappers for the second one too."""
    assert measured["two models"]["effect"] > 1e-3
    assert measured["two models"][kind] == 0
