"""The pack imports in a ComfyUI that has ComfyUI's requirements and nothing more, under any name."""

from __future__ import annotations

import pytest

from .inside import measure

pytestmark = pytest.mark.comfyui


def test_the_nodes_need_nothing_beyond_comfyui(install, tmp_path):
    modules = measure(install, "imports.py", tmp_path)
    assert "pack.nodes.apply" in modules["ours"]
    assert "pack.hywu_core.apply.comfy" in modules["ours"]
    assert modules["absolute"] == [], "imported by absolute name: two copies of the library in one process"
