import contextlib
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from hywu_core import storage
from hywu_core.errors import HywuError
from hywu_core.lora.numbered import save_all_numbered, save_numbered
from hywu_core.storage import AlreadyThereError, atomic_folder, atomic_path


def write(text):
    def into(path):
        with atomic_path(path, new=True) as temporary:
            temporary.write_text(text, encoding="utf-8")

    return into


def full(path):
    raise HywuError("No space left on device")


def save(folder, prefix, text="x"):
    return save_numbered(folder, prefix, ".txt", write(text)).relative_to(folder.resolve()).as_posix()


def test_names_count_up_whatever_else_is_in_the_folder(tmp_path):
    (tmp_path / "a_00007_.safetensors").touch()
    (tmp_path / "A_00009_").mkdir()
    (tmp_path / "a_x_00050_.txt").touch()
    (tmp_path / "a_00800_.txt.tmp_").touch()
    (tmp_path / "a_many_.txt").touch()
    assert [save(tmp_path, "a"), save(tmp_path, "a"), save(tmp_path, "b")] == [
        "a_00801_.txt", "a_00802_.txt", "b_00001_.txt",
    ]  # fmt: skip


def test_subfolders_are_made_and_windows_separators_understood(tmp_path):
    assert save(tmp_path, "deep/er/a") == "deep/er/a_00001_.txt"
    assert save(tmp_path, "deep\\er\\a") == "deep/er/a_00002_.txt"
    assert save(tmp_path, "./deep//er/../a ") == "deep/a_00001_.txt"


def test_a_failed_save_takes_back_the_empty_folders_it_made(tmp_path):
    (tmp_path / "old").mkdir()

    def not_alone(path):
        (tmp_path / "new" / "shared").mkdir()  # by another process
        full(path)

    for prefix in ("old/x", "old/new/er/x", "new/er/x"):
        with pytest.raises(HywuError, match="No space left"):
            save_numbered(tmp_path, prefix, ".txt", not_alone if prefix == "new/er/x" else full)
    with pytest.raises(HywuError, match="No space left"):
        save_all_numbered(tmp_path, "old/all/x", ".txt", [write("first"), full])
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {
        "old", "new", "new/shared",
    }  # fmt: skip


def test_the_time_can_be_part_of_the_name(tmp_path):
    before = datetime.now()
    name = save(tmp_path, "%year%-%month%-%day%/%hour%%minute%%second%")
    after = datetime.now()
    made = datetime.strptime(name, "%Y-%m-%d/%H%M%S_00001_.txt")
    assert before.replace(microsecond=0) <= made <= after


def test_a_batch_has_one_time_in_its_names(tmp_path, monkeypatch):
    class Clock(datetime):
        ticks = iter(range(60))

        @classmethod
        def now(cls):
            return cls(2026, 1, 1, 0, 0, next(cls.ticks))

    monkeypatch.setattr("hywu_core.lora.numbered.datetime", Clock)
    paths = save_all_numbered(tmp_path, "%second%/x", ".txt", [write("a"), write("b")])
    assert [path.relative_to(tmp_path.resolve()).as_posix() for path in paths] == [
        "00/x_00001_.txt",
        "00/x_00002_.txt",
    ]
    with pytest.raises(HywuError, match="No space left"):
        save_all_numbered(tmp_path, "%second%/x", ".txt", [write("a"), full])
    assert [path.name for path in tmp_path.iterdir()] == ["00"]


@pytest.mark.parametrize(
    "prefix", ["", "  ", ".", "..", "../x", "a/../../x", "..\\x", "/tmp/x", "\\x", "a\0b"]
)
def test_names_never_leave_their_folder(tmp_path, prefix):
    folder = tmp_path / "loras"
    folder.mkdir()
    with pytest.raises(HywuError):
        save(folder, prefix)
    assert [path.name for path in tmp_path.rglob("*")] == ["loras"]


def test_a_link_to_another_disk_is_followed_and_not_left_by_dots(tmp_path):
    (tmp_path / "loras").mkdir()
    (tmp_path / "other").mkdir()
    try:
        (tmp_path / "loras" / "out").symlink_to(tmp_path / "other", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    assert [save(tmp_path / "loras", "out/x") for _ in range(2)] == ["out/x_00001_.txt", "out/x_00002_.txt"]
    assert save(tmp_path / "loras", "out/new/x") == "out/new/x_00001_.txt"
    assert (tmp_path / "other" / "new" / "x_00001_.txt").is_file()
    for prefix in ("out/../../x", "out/../../other/x"):
        with pytest.raises(HywuError, match="not a file name inside"):
            save(tmp_path / "loras", prefix)


@pytest.mark.parametrize("prefix", ["what?", "a:b", "C:/x", 'say "x"', "a<b", "a|b", "a*", "new\nline"])
def test_characters_that_windows_refuses_are_a_sentence(tmp_path, prefix):
    with pytest.raises(HywuError, match="which Windows refuses in file names"):
        save(tmp_path, prefix)


@pytest.mark.parametrize("prefix", ["con/x", "a/NUL/x", "lpt1.old/x", "dots./x", "space /x"])
def test_folders_that_windows_refuses_are_a_sentence(tmp_path, prefix):
    with pytest.raises(HywuError, match=r"folder .* which Windows refuses"):
        save(tmp_path, prefix)
    assert not list(tmp_path.iterdir())


def test_names_that_are_none_of_these_are_kept(tmp_path):
    assert save(tmp_path, "旧照片/v1.5 (final) & more") == "旧照片/v1.5 (final) & more_00001_.txt"
    assert save(tmp_path, "con") == "con_00001_.txt"  # the number makes it another name


def test_a_folder_where_a_file_is_in_the_way_is_a_sentence(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(HywuError, match="Could not make the folder"):
        save(tmp_path, "a/x")


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_never_replaces_one(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*args):
            raise PermissionError("no hard links on this file system")

        monkeypatch.setattr(storage.os, "link", refuse)
    path = tmp_path / "x.txt"
    write("first")(path)
    with pytest.raises(AlreadyThereError, match="not overwritten"):
        write("second")(path)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_folder_never_replaces_anything_and_is_whole_or_absent(tmp_path):
    path = tmp_path / "x"
    with contextlib.suppress(ZeroDivisionError), atomic_folder(path) as temporary:
        (temporary / "half").touch()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with atomic_folder(path) as temporary:
        (temporary / "whole").touch()
        assert not path.exists()
    for taken in (path, path / "whole"):
        with pytest.raises(AlreadyThereError), atomic_folder(taken) as temporary:
            (temporary / "other").touch()
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["x", "x/whole"]


def test_of_several_files_all_are_written_or_none(tmp_path):
    def folder(path):
        with atomic_folder(path) as temporary:
            (temporary / "whole").touch()

    def full(path):
        raise HywuError("No space left.")

    names = [p.name for p in save_all_numbered(tmp_path, "a", "", [write("x"), folder])]
    assert names == ["a_00001_", "a_00002_"]
    with pytest.raises(HywuError, match="No space left"):
        save_all_numbered(tmp_path, "a", "", [write("x"), folder, full, write("never")])
    assert sorted(path.name for path in tmp_path.iterdir()) == names


SAVER = """
import sys, torch
from pathlib import Path
from hywu_core.lora import Adapter, save_adapter, save_peft
from hywu_core.lora.numbered import save_numbered
folder, value, format = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
adapter = Adapter({"x": (torch.full((1, 1, 2), value), torch.ones(1, 2, 1))})
save, suffix = (save_adapter, ".safetensors") if format == "file" else (save_peft, "")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[4])):
    path = save_numbered(folder, "many/x", suffix, lambda path: save(adapter, path, new=True))
    print(path.name, flush=True)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_two_processes_that_save_at_once_overwrite_nothing(tmp_path, kind):
    from hywu_core.lora import load_adapter

    each = 25
    root = Path(__file__).resolve().parents[2]
    savers = [
        subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path), str(value), kind, str(each)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(root)},
        )
        for value in (1.0, 2.0)
    ]
    for saver in savers:
        assert saver.stdout.readline() == "ready\n"
    for saver in savers:
        saver.stdin.write("\n")
        saver.stdin.flush()
    names = [saver.communicate(timeout=120)[0].split() for saver in savers]
    suffix = ".safetensors" if kind == "file" else ""
    assert sorted(names[0] + names[1]) == [f"x_{n:05}_{suffix}" for n in range(1, 2 * each + 1)]
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == sorted(names[0] + names[1])
    for value, own in zip((1.0, 2.0), names, strict=True):
        assert {load_adapter(tmp_path / "many" / name)["x"][0][0, 0, 0].item() for name in own} == {value}
