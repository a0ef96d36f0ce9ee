"""What the ComfyUI registry is told and given: metadata that comfy-cli accepts, and a pack that is whole.

comfy-cli is no part of the test extra: it brings its own ffmpeg, 340 MB in all, and its own ruff. Where it
stands beside the interpreter or on the search path, it is asked; it needs no network for this.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ICON = ROOT / ".github" / "images" / "icon.png"
_VERSION = re.compile(r"(==|>=|<=|!=|~=|>|<)?\d+\.\d+\.\d+(-\w+)?")  # the registry's


def test_the_registry_finds_all_it_shows():
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*", project["name"])
    assert _VERSION.fullmatch(project["version"])
    assert project["description"]
    assert comfy["PublisherId"] == "hywu"
    assert comfy["DisplayName"]
    assert _VERSION.fullmatch(comfy["requires-comfyui"])
    assert "Operating System :: OS Independent" in project["classifiers"]


def test_the_web_directory_is_named_once():
    assert "web" not in PROJECT["tool"]["comfy"]
    assert 'WEB_DIRECTORY = "./web"' in (ROOT / "__init__.py").read_text(encoding="utf-8")


def test_the_icon_is_one_the_registry_takes():
    assert Image.open(ICON).size == (400, 400)
    assert ICON.stat().st_size < 50_000


@pytest.fixture
def comfy_cli(tmp_path):
    """Runs comfy-cli in a folder; it counts nobody and touches no settings of the user."""
    beside = Path(sys.executable).with_name("comfy.exe" if os.name == "nt" else "comfy")
    if (executable := str(beside) if beside.exists() else shutil.which("comfy")) is None:
        pytest.skip("no comfy-cli here: pip install comfy-cli")
    home = tmp_path / "home"
    home.mkdir()
    places = dict.fromkeys(("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "XDG_CONFIG_HOME"), str(home))

    def run(folder: Path, *arguments: str) -> str:
        done = subprocess.run(
            [executable, "--skip-prompt", "--no-json", "node", *arguments],
            cwd=folder,
            env=os.environ | places | {"DO_NOT_TRACK": "1", "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_comfy_node_validate_passes(comfy_cli):
    said = comfy_cli(ROOT, "validate")
    assert "All validation checks passed" in said
    assert "arning" not in said


def test_the_packed_node_holds_what_it_needs_and_no_tests(comfy_cli, tmp_path):
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout here: comfy-cli packs what git tracks")
    checkout = tmp_path / "checkout"
    clone = [git, "clone", "--quiet", "--depth", "1", ROOT.as_uri(), str(checkout)]
    subprocess.run(clone, check=True, capture_output=True, timeout=120)
    comfy_cli(checkout, "pack")
    (archive,) = checkout.glob("*.zip")
    names = zipfile.ZipFile(archive).namelist()
    for needed in (
        "__init__.py",
        "pyproject.toml",
        "LICENSE",
        "nodes/__init__.py",
        "hywu_core/__init__.py",
        "hywu_core/embedded/hywu/hywu_embedded_generator.safetensors",
        "hywu_core/embedded/text/hywu_embedded_text.safetensors",
        "locales/zh/nodeDefs.json",
        "web/docs/HYWU_ApplyLoRA/zh.md",
        "workflows/quickstart.json",
        "workflows/quickstart.jpg",
    ):
        assert needed in names
    assert ".github/images/quickstart.png" in names  # README's
    left_out = ("tests/", ".ci/", ".github/workflows/")
    assert not [name for name in names if name.startswith(left_out)]
    assert archive.stat().st_size < 60_000_000
