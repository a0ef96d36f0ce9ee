"""The apply bench measures in a real ComfyUI, at a tiny size, what its table and JSON promise."""

from __future__ import annotations

import json

import pytest

from hywu_core.bench.__main__ import main
from hywu_core.bench.apply import ratios
from hywu_core.cli import command
from hywu_core.errors import HywuError

pytestmark = pytest.mark.comfyui


def test_its_json_has_every_number_of_its_table(install, tmp_path, capfd):
    if not (install.root / "comfy" / "weight_adapter" / "bypass.py").is_file():
        with pytest.raises(HywuError, match="has no LoraLoaderBypass"):
            main(["apply", "--comfyui", str(install.root)])
        return
    file = tmp_path / "apply.json"
    settings = ["--size", "tiny", "--rounds", "3", "--changes", "1", "--cpu", "--json", str(file)]
    assert main(["apply", "--comfyui", str(install.root), "--python", str(install.python), *settings]) == 0
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["comfyui"] == install.version
    assert result["model"]["linears"] == 13
    seconds = result["seconds"]
    assert {"LoraLoader", "ours"} <= seconds["change"].keys()
    assert {"none", "ours"} <= seconds["step"].keys()
    assert "LoraLoaderBypass" in seconds["step"]
    assert seconds["batch"].keys() == {"batch of 4", "4 runs"}
    assert all(value > 0 for ways in seconds.values() for times in ways.values() for value in times)
    assert {"change", "batch"} <= result["ratios"].keys()
    printed = capfd.readouterr().out
    assert "change of the adapter, ours / LoraLoader" in printed
    assert install.version in printed


def test_the_ratio_of_what_is_added_is_taken_of_medians_of_parts():
    step = {"none": [1.0, 1.0, 1.0], "LoraLoaderBypass": [1.4, 1.2, 0.9], "ours": [1.1, 1.1, 1.1]}
    seconds = {
        "change": {"ours": [1.0], "LoraLoader": [20.0]},
        "batch": {"4 runs": [3.0], "batch of 4": [2.0]},
    }
    found = ratios(seconds | {"step": step})
    assert found["change"]["median"] == pytest.approx(0.05)
    assert found["batch"]["median"] == pytest.approx(1.5)
    # Where noise hides what stock adds there is nothing to compare with.
    assert found["step"]["runs"] == 2
    assert found["step"]["minimum"] == pytest.approx(0.25)
    assert found["step"]["maximum"] == pytest.approx(0.5)


def test_a_folder_without_comfyui_is_a_sentence(tmp_path, capsys):
    assert command(lambda: main(["apply", "--comfyui", str(tmp_path)])) != 0
    assert "There is no ComfyUI in" in capsys.readouterr().err
