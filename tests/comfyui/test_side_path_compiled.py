"""The side path with stock's "TorchCompileModel" (see `inside/side_path_compiled.py`)."""

from __future__ import annotations

import pytest

from .inside import measure

pytestmark = pytest.mark.comfyui
NOISE = 1e-5


@pytest.fixture(scope="module")
def measured(install, side_path_files):
    return measure(install, "side_path_compiled.py", side_path_files)


@pytest.mark.parametrize("order", ["compile first", "compile last"])
def test_another_adapter_of_the_same_shapes_compiles_nothing(measured, order):
    first, second, third, stack, other_stack, again, batch, other_batch, without = measured[order]
    assert [second["graphs"], third["graphs"]] == [0, 0]
    assert [other_stack["graphs"], again["graphs"], other_batch["graphs"]] == [0, 0, 0]
    for once in (first, stack, batch, without):
        assert once["graphs"] >= 1


@pytest.mark.parametrize("order", ["compile first", "compile last"])
def test_compiled_it_is_the_same(measured, order):
    assert all(run["gap"] <= NOISE for run in measured[order])
