"""Kept LoRAs: bounds of memory and disk, damage, two processes at once; bit for bit what was put there."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from hywu_core import Adapter
from hywu_core.generation_cache import DiskCache, MemoryCache, cache_key, size_of

ROOT = Path(__file__).resolve().parents[1]
KEYS = [cache_key("generator", str(i), "cpu") for i in range(6)]


def adapter_of(seed: int = 0, dtype: torch.dtype = torch.float32, size: int = 8) -> Adapter:
    random = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=random).to(dtype)

    # Names whose order in a file is another; views of one memory, as generators make them.
    both = matrix(2, 4, size)
    weights = {"z.0": (both[:, 0], both[:, 1].mT), "a.0": (matrix(3, 4, size), matrix(3, size, 4))}
    return Adapter(weights, 0.1 + seed, {"base": "x", "generator_sha256": "y"})


def same(a: Adapter | None, b: Adapter) -> bool:
    return (
        a is not None
        and list(a) == list(b)
        and a.scale == b.scale
        and a.provenance == b.provenance
        and all(x.dtype == y.dtype and torch.equal(x, y) for n in a for x, y in zip(a[n], b[n], strict=True))
    )


def test_keys_are_of_all_that_matters():
    parts = [("g", "c", "cpu"), ("h", "c", "cpu"), ("g", "d", "cpu"), ("g", "c", "cuda")]
    assert len({cache_key(*part) for part in parts}) == 4


@settings(deadline=None)
@given(uses=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=30), room=st.integers(0, 4))
def test_memory_holds_those_used_last_within_its_bound(uses, room):
    """Against a plain list of the keys by last use."""
    size = size_of(adapter_of())
    cache, order = MemoryCache(room * size + size // 2), []
    for put, number in uses:
        key = KEYS[number]
        if put:
            cache.put(key, adapter_of(number))
            order = ([k for k in order if k != key] + [key])[-room:] if room else []
        else:
            found = cache.get(key)
            assert (found is not None) == (key in order)
            assert found is None or same(found, adapter_of(number))
            order = [k for k in order if k != key] + [key] * (key in order)
        assert len(cache) == len(order)
        assert cache.n_bytes == size * len(order) <= cache.max_bytes


def test_memory_counts_shared_tensors_once_and_views_whole():
    whole = torch.zeros(1, 100, 8)
    adapter = Adapter({"a": (whole[:, :4], whole[:, 4:8].mT[:, :8])})
    assert size_of(adapter) == whole.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_disk_gives_back_every_bit(tmp_path, dtype):
    cache = DiskCache(tmp_path / "made" / "when needed", 10**8)
    assert cache.get(KEYS[0]) is None
    assert not cache.folder.exists()
    adapter = adapter_of(3, dtype)
    cache.put(KEYS[0], adapter)
    assert same(DiskCache(cache.folder, 10**8).get(KEYS[0]), adapter)
    assert cache.get(KEYS[1]) is None


def test_nobody_can_read_instructions_in_it(tmp_path):
    private = Adapter(adapter_of(), 1.0, {"base": "x"}, [{"prompt": "my private words"}])
    cache = DiskCache(tmp_path, 10**8)
    cache.put(KEYS[0], private)
    assert b"private" not in (tmp_path / f"{KEYS[0]}.safetensors").read_bytes()
    assert cache.get(KEYS[0]).rows == ()


def test_disk_keeps_those_used_last_within_its_bound(tmp_path):
    cache = DiskCache(tmp_path, 10**8)
    cache.put(KEYS[0], adapter_of())
    size = (tmp_path / f"{KEYS[0]}.safetensors").stat().st_size
    cache = DiskCache(tmp_path, 3 * size + size // 2)
    for age, key in enumerate(KEYS[:3]):
        cache.put(key, adapter_of())
        os.utime(tmp_path / f"{key}.safetensors", (1000 + age, 1000 + age))
    cache.get(KEYS[0])  # used just now
    cache.put(KEYS[3], adapter_of())
    assert {path.stem for path in tmp_path.iterdir()} == {KEYS[0], KEYS[2], KEYS[3]}


def test_what_a_killed_process_left_is_swept_and_what_is_being_written_is_not(tmp_path):
    for name, age in ((".old.safetensors.aa.tmp", 1000), (".new.safetensors.bb.tmp", None)):
        (tmp_path / name).write_bytes(b"half")
        if age:
            os.utime(tmp_path / name, (age, age))
    DiskCache(tmp_path, 10**8).put(KEYS[0], adapter_of())
    assert {path.name for path in tmp_path.iterdir()} == {
        ".new.safetensors.bb.tmp",
        f"{KEYS[0]}.safetensors",
    }


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: os.truncate(path, 700),
        lambda path: path.write_text("no tensors"),
        lambda path: path.write_bytes(b""),
        flip_last_byte,
        lambda path: os.replace(path.with_name(f"{KEYS[1]}.safetensors"), path),
    ],
    ids=["truncated", "foreign", "empty", "one bit", "another entry"],
)
def test_a_damaged_entry_is_a_warning_and_gone(tmp_path, spoil, caplog):
    cache = DiskCache(tmp_path, 10**8)
    cache.put(KEYS[0], adapter_of())
    cache.put(KEYS[1], adapter_of(1))
    path = tmp_path / f"{KEYS[0]}.safetensors"
    spoil(path)
    with caplog.at_level(logging.WARNING, "hywu"):
        assert cache.get(KEYS[0]) is None
    assert "is damaged and is generated again" in caplog.text
    assert not path.exists()
    cache.put(KEYS[0], adapter_of())
    assert same(cache.get(KEYS[0]), adapter_of())


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, "hywu"):
        DiskCache(tmp_path / "file" / "below", 10**8).put(KEYS[0], adapter_of())
    assert "could not be kept on disk" in caplog.text


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}]
from hywu_core.generation_cache import DiskCache
from tests.test_generate_cache import KEYS, adapter_of, same
cache = DiskCache(Path({folder!r}), {bound})
for turn in range(40):
    number = turn % len(KEYS)
    found = cache.get(KEYS[number])
    assert found is None or same(found, adapter_of(number, size=64))
    cache.put(KEYS[number], adapter_of(number, size=64))
"""


def test_two_processes_write_and_read_and_make_room_at_once(tmp_path):
    one = tmp_path / "one"
    DiskCache(one, 10**8).put(KEYS[0], adapter_of(size=64))
    size = next(one.iterdir()).stat().st_size
    code = WRITER.format(root=str(ROOT), folder=str(tmp_path / "both"), bound=4 * size + 1)
    writers = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
        assert "could not be kept" not in errors
    left = list((tmp_path / "both").iterdir())
    assert 1 <= len(left) <= 5
    assert {path.suffix for path in left} == {".safetensors"}
    for path in left:
        with safe_open(path, "pt") as file:
            assert file.metadata()["key"] == path.stem
