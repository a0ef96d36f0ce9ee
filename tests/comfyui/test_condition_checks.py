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
