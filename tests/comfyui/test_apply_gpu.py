"""On a GPU: VRAM is level over many adapters, and offloaded models run as loaded ones do."""

from __future__ import annotations

import pytest
import torch

from .inside import measure

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("memory", ["--highvram", "--normalvram", "--lowvram", "--novram"])
def test_vram_is_level_and_the_result_the_same(install, side_path_files, memory):
    measured = measure(install, "side_path_gpu.py", side_path_files, memory)
    assert measured["device"].startswith("cuda")
    assert measured["gap"] <= 1e-3
    assert measured["after"] == 0
    assert measured["growth"] <= 1e6
    assert measured["left_after_freeing"] <= 1e6
