"""The apply bench before it looks for a ComfyUI: what it is told must make sense."""

import pytest

from hywu_core.bench.__main__ import main

from ..commands import refused


@pytest.mark.parametrize("name", ["rank", "rounds", "changes"])
def test_nothing_is_looked_for_where_nothing_would_be_measured(name, tmp_path, capfd):
    nowhere = ("--comfyui", tmp_path / "nowhere")
    said = refused(main, "apply", *nowhere, f"--{name}", 0, folder=tmp_path, capfd=capfd)
    assert said == f"{name} is 0; it must be at least 1."
