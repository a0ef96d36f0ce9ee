"""HY-WU Condition before and around its encoder (see `inside/condition_checks.py`)."""

from __future__ import annotations

import pytest

from .inside import measure

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def measured(install, tmp_path_factory):
    return measure(install, "condition_checks.py", tmp_path_factory.mktemp("checks"))


def test_a_condition_knows_its_encoder(measured):
    assert measured["picture"]["encoder"] == "a siglip2"
    assert measured["words False"]["encoder"] == "a backbone_hidden"


def test_no_encoder_is_read_before_a_missing_picture_is_noticed(measured):
    found = measured["no picture"]
    assert found["error"] == "The encoder a siglip2 of this generator looks at a picture; connect an image."
    assert found["opened"] == 0
    assert measured["picture"]["opened"] == 1


@pytest.mark.parametrize("per_line", [False, True])
def test_hidden_states_need_no_words(measured, per_line):
    """They are the backbone's reading of them; what is given is kept."""
    assert measured[f"no words {per_line}"]["prompts"] is None
    assert [text.strip() for text in measured[f"words {per_line}"]["prompts"]] == ["darken"]


def test_pictures_need_words(measured):
    assert "The instruction is empty" in measured["no lines"]["error"]
