"""Run the commands as a user does, in a process of their own or, where that adds nothing, in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hywu_core.cli import command

ROOT = Path(__file__).resolve().parents[1]


def start(module: str, *arguments: object, folder: Path) -> subprocess.Popen[str]:
    """`python -m module arguments` in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def run(module: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """`start`, and wait for the end."""
    process = start(module, *arguments, folder=folder)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder with its bytes, and every folder in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def sentence_of(code: int, out: str, err: str) -> str:
    """What a refusal says, after checking that it is one: exit code 2, one line, nothing else."""
    assert code == 2, err
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    return err[len("error: ") : -1]


def refused(
    main: Callable[[list[str]], int], *arguments: object, folder: Path, capfd: pytest.CaptureFixture[str]
) -> str:
    """What a command says when it refuses its arguments; `folder` must be as it was before."""
    before = contents(folder)
    capfd.readouterr()
    code = command(lambda: main([str(argument) for argument in arguments]))
    sentence = sentence_of(code, *capfd.readouterr())
    assert contents(folder) == before
    return sentence
