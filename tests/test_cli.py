"""What every command does with what goes wrong, whatever it is."""

import errno
import sys

import pytest
import torch

from hywu_core.cli import check_folder, command, require
from hywu_core.errors import HywuError

from .commands import sentence_of


def fails(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (HywuError("Two lines\n   of another library."), "Two lines of another library."),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), "The disk is full: a.png."),
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB. "
                "Of the allocated memory 7.00 GiB is allocated by PyTorch."
            ),
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB.",
        ),
        (
            RuntimeError(
                "[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                "tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes. "
            "Error code 12 (Cannot allocate memory).",
        ),
        (
            RuntimeError(
                "[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."
            ),
            "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
        ),
        (
            MemoryError("Unable to allocate 7.28 TiB for an array"),
            "Unable to allocate 7.28 TiB for an array.",
        ),
        (MemoryError(), "There is not enough memory."),
        (PermissionError(errno.EACCES, "Permission denied", "a.png"), "Permission denied: a.png."),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(capfd, error, sentence):
    code = command(fails(error))
    assert sentence_of(code, *capfd.readouterr()) == sentence


def test_ctrl_c_is_one_word_and_exit_code_130(capfd):
    assert command(fails(KeyboardInterrupt())) == 130
    assert capfd.readouterr() == ("", "Stopped.\n")


def test_a_fault_of_ours_is_not_hidden():
    for error in (KeyError("x"), RuntimeError("shapes cannot be multiplied")):
        with pytest.raises(type(error)):
            command(fails(error))


def test_a_terminal_without_the_letters_of_a_name_is_no_reason_to_fail(monkeypatch, tmp_path):
    with open(tmp_path / "terminal", "w", encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert command(lambda: print("结果.png") or 0) == 0


def test_missing_packages_are_named_together():
    require("torch")
    with pytest.raises(HywuError, match=r"pip install hywu_one hywu_two$"):
        require("hywu_one", "torch", "hywu_two")


def test_folders_that_can_be_made_and_that_cannot(tmp_path):
    (tmp_path / "file").touch()
    check_folder(tmp_path)
    check_folder(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    for path in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(HywuError, match="file is no folder"):
            check_folder(path)
