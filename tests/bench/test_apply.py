"""The apply bench before it looks for a ComfyUI: what it is told must make sense."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hywu_core.bench import apply
from hywu_core.bench.__main__ import main

from ..commands import refused


@pytest.mark.parametrize("name", ["rank", "rounds", "changes"])
def test_nothing_is_looked_for_where_nothing_would_be_measured(name, tmp_path, capfd):
    nowhere = ("--comfyui", tmp_path / "nowhere")
    said = refused(main, "apply", *nowhere, f"--{name}", 0, folder=tmp_path, capfd=capfd)
    assert said == f"{name} is 0; it must be at least 1."


@pytest.fixture
def comfyui(tmp_path):
    root = tmp_path / "ComfyUI"
    (root / "comfy" / "weight_adapter").mkdir(parents=True)
    for file in ("main.py", "comfy/weight_adapter/bypass.py"):
        (root / file).touch()
    return root


def test_an_interpreter_is_named_from_where_the_command_is_given(comfyui, tmp_path, monkeypatch, capfd):
    ran = []
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(apply.subprocess, "run", lambda words, **_: ran.append(words[0]) or failed)
    monkeypatch.chdir(Path(sys.executable).parent)
    near = os.path.join(os.curdir, Path(sys.executable).name)
    assert refused(main, "apply", "--comfyui", comfyui, "--python", near, folder=tmp_path, capfd=capfd)
    assert ran == [os.path.abspath(near)]


def test_an_interpreter_that_is_not_there_is_a_sentence(comfyui, tmp_path, capfd):
    given = ("--comfyui", comfyui, "--python", "none/python")
    said = refused(main, "apply", *given, folder=tmp_path, capfd=capfd)
    assert said.startswith("There is no program none")
