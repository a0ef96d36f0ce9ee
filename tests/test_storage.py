import contextlib
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from hywu_core import storage
from hywu_core.errors import HywuError
from hywu_core.images import check_file_path
from hywu_core.report import check_json
from hywu_core.storage import (
    atomic_folder,
    atomic_path,
    check_writable,
    open_safetensors,
    path_inside,
    temporary_beside,
    write_safetensors,
)


def test_the_file_appears_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "x.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename across file systems would not be atomic
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_content_and_nothing_else(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail_halfway():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_operating_system_errors_become_one_sentence(tmp_path):
    with pytest.raises(HywuError, match="does not exist"), atomic_path(tmp_path / "no" / "x"):
        pass
    with pytest.raises(HywuError, match="Could not write"), atomic_path(tmp_path / "x"):
        pass  # nothing was written, so there is nothing to rename
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError, SafetensorError, KeyboardInterrupt])
@pytest.mark.parametrize("late", [False, True])
def test_a_folder_is_replaced_whole_or_stays(error, late, tmp_path, monkeypatch):
    folder, rename = tmp_path / "x", os.rename
    folder.mkdir()
    (folder / "old").touch()

    def write(fails=False):
        with atomic_folder(folder, new=False) as temporary:
            (temporary / "new").touch()
            if fails:
                raise error("no space left")

    def names():
        return [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))]

    def failing(one, other):
        if str(one).endswith(".tmp"):
            raise error("no space left")
        rename(one, other)

    if late:  # the old folder is out of the way already
        monkeypatch.setattr(storage.os, "rename", failing)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else HywuError, match="no space left"):
        write(fails=not late)
    assert names() == ["x", "x/old"]
    monkeypatch.undo()
    write()
    assert names() == ["x", "x/new"]


@pytest.mark.parametrize("name", ["x" * 241 + ".safetensors", "x", "\u4f60" * 84 + ".p", "\U0001f600" * 63])
def test_the_longest_names_that_there_can_be_are_written(tmp_path, name):
    (tmp_path / name).write_text("as anybody could")
    (tmp_path / name).unlink()
    with atomic_path(tmp_path / name) as temporary:
        for code in ("utf-8", "utf-16-le"):  # what Linux and what Windows count
            assert len(temporary.name.encode(code)) <= max(len(name.encode(code)), 2 * 14)
        temporary.write_text("x")
    assert (tmp_path / name).read_text() == "x"
    (tmp_path / name).unlink()
    with atomic_folder(tmp_path / name):
        pass
    assert (tmp_path / name).is_dir()


def test_a_temporary_file_is_recognised_by_how_its_name_begins(tmp_path):
    assert temporary_beside(tmp_path / "checkpoint-000001.safetensors").match(".checkpoint-00*.tmp")


def test_where_nothing_can_be_written_is_known_before(tmp_path, monkeypatch):
    check_writable(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    for check in (check_writable, check_file_path, check_json):
        with pytest.raises(HywuError, match=r"Cannot write .*x: Permission denied\."):
            check(tmp_path / "x")


@pytest.mark.parametrize("name", ["x" * 250 + ".safetensors", "x" * 256, "x" * 300 + "/x"])
def test_a_name_that_is_too_long_is_a_sentence(tmp_path, name):
    for write in (atomic_path, atomic_folder):
        with pytest.raises(HywuError, match="xxx"), write(tmp_path / name) as temporary:
            temporary.touch()
    with pytest.raises(HywuError, match=r"no file .*xxx"), open_safetensors(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []


def test_tensors_and_metadata_round_trip(tmp_path):
    tensor = torch.randn(3)
    write_safetensors(tmp_path / "x.safetensors", {"t": tensor}, {"note": "näher"})
    with open_safetensors(tmp_path / "x.safetensors") as file:
        assert torch.equal(file.get_tensor("t"), tensor)
        assert file.metadata() == {"note": "näher"}


def test_tensors_are_as_readable_as_any_other_file(tmp_path):
    (tmp_path / "x.txt").touch()
    write_safetensors(tmp_path / "x.safetensors", {"t": torch.zeros(1)}, {})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "x.txt").stat().st_mode


def test_a_file_that_goes_while_it_is_opened_is_missing(tmp_path, monkeypatch):
    """safetensors opens a file twice, the second time through torch, whose error is a RuntimeError."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"t": torch.zeros(1)}, {})
    mapped = torch.UntypedStorage.from_file

    def gone(name, *arguments, **options):
        path.unlink()
        return mapped(name, *arguments, **options)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", gone)
    with pytest.raises(HywuError, match="not a complete safetensors file"), open_safetensors(path):
        pass


def test_errors_of_whoever_reads_stay_theirs(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"t": torch.zeros(1)}, {})
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        open_safetensors(tmp_path / "x.safetensors"),
    ):
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("content", [b"", b"hello, I am a text file", b"\xff" * 8, bytes(8) + b"{}"])
def test_what_is_not_safetensors_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(HywuError, match="not a complete safetensors"), open_safetensors(path) as file:
        file.get_tensor("t")


def test_reading_a_tensor_that_is_not_there_is_the_same_error(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"t": torch.zeros(1)}, {})
    with (
        pytest.raises(HywuError, match=r"x\.safetensors"),
        open_safetensors(tmp_path / "x.safetensors") as file,
    ):
        file.get_tensor("u")


@pytest.mark.parametrize("name", ["x.safetensors", "sub/x", "sub/../x", "./x", " x "])
def test_names_inside_the_folder(tmp_path, name):
    assert path_inside(tmp_path, name).is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize(
    "name", ["", "  ", ".", "..", "../x", "sub/../../x", "/etc/passwd", "sub/../..", "x\0y"]
)
def test_names_that_climb_out_are_refused(tmp_path, name):
    with pytest.raises(HywuError, match="inside"):
        path_inside(tmp_path, name)


@pytest.fixture
def linked(tmp_path):
    """A folder with a link to the one that it is in."""
    folder = tmp_path / "models"
    folder.mkdir()
    try:
        (folder / "out").symlink_to(tmp_path)
    except OSError:
        pytest.skip("no symbolic links here")
    return folder


def test_a_link_out_of_the_folder_is_refused(linked):
    for name in ("out/x", "out", "sub/../out/x"):
        with pytest.raises(HywuError, match=r"inside .*: the link .*out leads out of it"):
            path_inside(linked, name)


def test_a_link_in_the_folder_is_followed_where_that_is_asked_for(linked, tmp_path):
    inside = linked.resolve()
    assert path_inside(linked, "out/x", follow_links=True) == inside / "out" / "x"
    assert path_inside(linked, "out/../x", follow_links=True) == inside / "x"
    for name in ("out/../../x", str(tmp_path / "x"), "out/..", "out/x\0y"):
        with pytest.raises(HywuError, match="is not a file name inside"):
            path_inside(linked, name, follow_links=True)


@given(st.lists(st.sampled_from(["..", ".", "a", "b", ""]), max_size=6).map("/".join))
def test_no_path_of_any_dots_gets_out(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp()
    for follow_links in (False, True):
        with contextlib.suppress(HywuError):
            assert folder.resolve() in path_inside(folder, name, follow_links).parents
