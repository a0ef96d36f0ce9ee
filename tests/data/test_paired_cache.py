"""The cache of encodings: nothing half-written is ever seen, whoever writes or is killed while writing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core.data.paired import EncodingCache, Picture, cache_key
from hywu_core.data.paired.file_hashes import FileHashes
from hywu_core.errors import HywuError

from ..commands import ROOT

ENTRIES = 30
SHARED = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from hywu_core.data.paired import EncodingCache, cache_key

def key(number):
    return cache_key([f"image {{number}}"], "encoder", {{"size": [64, 64]}})

def make(number):
    return {{"latent": torch.full((4, 2000), float(number)), "mask": torch.arange(number + 1) % 2 == 0}}
"""
WORKER = (
    SHARED
    + """
cache = EncodingCache(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    tensors = cache.get_or_make(key(number), lambda: make(number))
    assert torch.equal(tensors["latent"], make(number)["latent"])
report = cache.report()
print(report.hits, report.misses, report.damaged)
"""
)
KILLED = (
    SHARED
    + """
cache = EncodingCache(sys.argv[1])
cache.put(key(0), make(0))
import hywu_core.storage as storage
storage.os.fsync = lambda file: os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
cache.put(key(1), make(1))
"""
)


def key(number: int) -> str:
    return cache_key([f"image {number}"], "encoder", {"size": [64, 64]})


def start(script: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_fill_one_cache(tmp_path):
    workers = [start(WORKER, tmp_path, ENTRIES) for _ in range(2)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    results = [worker.communicate()[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    for hits, misses, damaged in results:
        assert int(hits) + int(misses) == ENTRIES
        assert damaged == "0"
    assert sum(int(misses) for _, misses, _ in results) >= ENTRIES
    cache = EncodingCache(tmp_path)
    assert cache.report().entries == ENTRIES
    assert not list(tmp_path.rglob("*.tmp"))
    tensors = cache.get(key(7))
    assert torch.equal(tensors["latent"], torch.full((4, 2000), 7.0))
    assert tensors["mask"].dtype == torch.bool


def test_a_process_killed_while_writing_leaves_no_entry_and_its_rest_is_removed(tmp_path):
    process = start(KILLED, tmp_path)
    process.communicate()
    assert process.returncode != 0
    [half] = tmp_path.rglob("*.tmp")
    assert half.stat().st_size > 0
    cache = EncodingCache(tmp_path)
    assert half.exists()  # it may belong to a process that is at work
    assert cache.get(key(0)) is not None
    assert cache.get(key(1)) is None
    assert cache.report().entries == 1
    os.utime(half, (time.time() - 10_000,) * 2)
    EncodingCache(tmp_path)
    assert not half.exists()


def test_a_process_killed_at_any_time_leaves_only_whole_entries(tmp_path):
    for step in range(3):
        process = start(WORKER, tmp_path, 10**6)
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        while len(list(tmp_path.glob("??/*.safetensors"))) < 25 * (step + 1):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.communicate()
    cache = EncodingCache(tmp_path)
    names = {path.stem for path in tmp_path.glob("??/*.safetensors") if path.name[0] != "."}
    assert len(names) >= 75
    assert all(cache.get(name) is not None for name in names)
    assert cache.report().damaged == 0


@pytest.mark.parametrize("damage", ["cut", "zeros", "exchanged"])
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    cache = EncodingCache(tmp_path)
    for number in range(2):
        cache.put(key(number), {"x": torch.ones(100) * number})
    first, second = (next(tmp_path.glob(f"??/{key(number)}.safetensors")) for number in range(2))
    if damage == "exchanged":
        first.write_bytes(second.read_bytes())
    else:
        first.write_bytes(bytes(300) if damage == "zeros" else first.read_bytes()[:-50])
    tensors = cache.get_or_make(key(0), lambda: {"x": torch.zeros(100)})
    assert tensors["x"].sum() == 0
    assert cache.get(key(0)) is not None
    assert cache.report().damaged == 1
    assert "1 damaged and made again" in str(cache.report())


def test_tensors_come_back_as_they_went(tmp_path):
    cache = EncodingCache(tmp_path)
    tensors = {
        "bf16": torch.randn(3, 4).bfloat16(),
        "view": torch.arange(12).view(3, 4).T,
        "mask": torch.tensor([True, False]),
        "grad": torch.ones(2, requires_grad=True),
    }
    cache.put(key(0), tensors)
    found = cache.get(key(0))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


TEXTS = st.lists(st.text(max_size=5), max_size=3)


@settings(deadline=None)
@given(TEXTS, TEXTS, st.text(max_size=3), st.text(max_size=3), st.integers(0, 2), st.integers(0, 2))
def test_keys_differ_wherever_their_contents_do(one, other, encoder, another, size, length):
    same = (one, encoder, size) == (other, another, length)
    assert (cache_key(one, encoder, {"s": size}) == cache_key(other, another, {"s": length})) == same


def test_keys_are_plain_data_and_do_not_depend_on_order():
    assert cache_key(["a"], "e", {"x": 1, "y": 2}) == cache_key(["a"], "e", {"y": 2, "x": 1})
    with pytest.raises(HywuError, match="is not plain data"):
        cache_key(["a"], "e", {"x": torch.ones(1)})


@pytest.mark.parametrize("wrong", ["", "../../x", "a" * 63, "A" * 64, "/" + "a" * 63])
def test_what_is_no_key_is_refused(tmp_path, wrong):
    with pytest.raises(HywuError, match="is no key of a cache"):
        EncodingCache(tmp_path).put(wrong, {})


def test_nothing_is_written_outside_the_folder(tmp_path):
    cache, outside = EncodingCache(tmp_path / "cache"), tmp_path / "outside"
    outside.mkdir()
    try:
        (tmp_path / "cache" / key(0)[:2]).symlink_to(outside)
    except OSError:
        pytest.skip("no links here")
    with pytest.raises(HywuError, match="is not a file name inside"):
        cache.put(key(0), {"x": torch.ones(1)})
    assert not list(outside.iterdir())


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HywuError, match="cannot be made"):
        EncodingCache(tmp_path / "file" / "cache")


class TestFileHashes:
    """Hashes are remembered, and files that were touched are read again."""

    @staticmethod
    def old(path: Path, content: bytes) -> Picture:
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
        return Picture(str(path))

    @pytest.fixture
    def reads(self, monkeypatch):
        """The files that were read."""
        from hywu_core.data.paired import file_hashes

        monkeypatch.setattr(file_hashes, "_SETTLED_NS", -(10**12))  # files of this test are new
        real, found = file_hashes.file_sha256, []
        monkeypatch.setattr(file_hashes, "file_sha256", lambda path: found.append(path) or real(path))
        return found

    def test_between_runs(self, tmp_path, reads):
        picture = self.old(tmp_path / "a.png", b"one")
        memory = tmp_path / "memory"
        first = FileHashes(memory)
        digest = first.of(picture)
        first.save()
        second = FileHashes(memory)
        assert second.of(picture) == digest
        assert len(reads) == 1
        second.save()
        assert len(list(memory.iterdir())) == 1
        same_time = os.name != "nt"  # Windows has no time of the last change beside that of writing
        self.old(tmp_path / "a.png", b"two" if same_time else b"three")
        assert FileHashes(memory).of(picture) != digest

    def test_what_several_processes_remember_is_put_together(self, tmp_path, reads):
        memory = tmp_path / "memory"
        pictures = [self.old(tmp_path / f"{number}.png", b"%d" % number) for number in range(4)]
        parts = [FileHashes(memory), FileHashes(memory)]
        for number, picture in enumerate(pictures):
            parts[number % 2].of(picture)
        for part in parts:
            part.save()
        assert len(list(memory.iterdir())) == 2
        together = FileHashes(memory)
        assert len({together.of(picture) for picture in pictures}) == 4
        assert len(reads) == 4

    def test_damaged_memory_is_forgotten(self, tmp_path, reads):
        (tmp_path / "hashes-0.json").write_text('{"a', encoding="utf-8")
        (tmp_path / "hashes-1.json").write_text('{"a": [1], "b": 3}', encoding="utf-8")
        picture = self.old(tmp_path / "a.png", b"one")
        FileHashes(tmp_path).of(picture)
        assert len(reads) == 1

    def test_a_file_that_was_just_written_is_not_remembered(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"one")
        hashes = FileHashes(tmp_path / "memory")
        hashes.of(Picture(str(tmp_path / "a.png")))
        hashes.save()
        assert not (tmp_path / "memory").exists()

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(HywuError, match=r"There is no image .*a\.png"):
            FileHashes().of(Picture(str(tmp_path / "a.png")))
