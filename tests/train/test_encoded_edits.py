"""What is encoded before a run: everything once, by all processes alike, and nothing that is there."""

import pytest
import torch

from hywu_core.backbones.embedded_edit import EmbeddedEditBackbone, EmbeddedEncoders
from hywu_core.backbones.flux_kontext import FluxKontextEncoders
from hywu_core.backbones.qwen_image_edit import QwenImageEditEncoders
from hywu_core.conditions.embedded import EmbeddedConditionEncoder
from hywu_core.data.paired import EncodingCache, file_hashes
from hywu_core.storage import file_sha256
from hywu_core.train import paired_recipe
from hywu_core.train.encoded_edits import Encoders, Names
from hywu_core.train.paired_recipe import SETTINGS, look
from hywu_core.train.processes import Processes
from hywu_core.train.share import Share

from .edited_photos import photograph, save, write_edits

PROMPT = "turn it round"


@pytest.fixture(scope="module")
def encoders():
    return Encoders(EmbeddedEncoders(torch.device("cpu")), EmbeddedConditionEncoder.load(silent=True))


@pytest.fixture
def edits(tmp_path):
    """Eight edits, all by the same words."""
    data = write_edits(tmp_path / "set")
    for number, path in enumerate(sorted((data / "targets").glob("*.png"))):
        save(photograph(path.stem, 1), data / "targets" / f"z{number}.png")
        save(photograph(path.stem, 3), data / "sources" / f"z{number}.png")
        for stem in (path.stem, f"z{number}"):
            (data / "targets" / f"{stem}.txt").write_text(PROMPT, encoding="utf-8")
    cache = str(tmp_path / "cache")
    return look(EmbeddedEditBackbone, SETTINGS | {"data": str(data), "cache": cache, "resolution": 64})


def encode(edits, encoders, share=Share()):  # noqa: B008 - it cannot change
    """Returns the numbers of samples done, as they were told."""
    told = []
    edits.encode(Names.of(encoders), encoders, False, share, told.append)
    return told


def test_words_that_are_read_without_pictures_are_read_once(edits, encoders, monkeypatch):
    read = []
    text = EmbeddedEncoders.encode_text
    monkeypatch.setattr(EmbeddedEncoders, "encode_text", lambda *given: read.append(given) or text(*given))
    encode(edits, encoders)
    [(_, prompt, pictures)] = read
    assert (prompt, list(pictures)) == (PROMPT, [])
    assert edits.read(3, PROMPT, Names.of(encoders)).sample.text["embeds"].shape[0] == 1
    assert not FluxKontextEncoders.text_sees_pictures
    assert QwenImageEditEncoders.text_sees_pictures


@pytest.mark.parametrize("rank", ["", "0", "1"])
def test_that_no_sample_has_words_is_said_once(rank, tmp_path, caplog, monkeypatch):
    if rank:
        monkeypatch.setenv("RANK", rank)
    data = write_edits(tmp_path / "targets_and_sources")
    settings = SETTINGS | {"data": str(data), "cache": str(tmp_path / "cache"), "resolution": 64}
    look(EmbeddedEditBackbone, settings)
    assert not caplog.records
    for caption in (data / "targets").glob("*.txt"):
        caption.unlink()
    look(EmbeddedEditBackbone, settings)
    said = [record.message for record in caplog.records]
    assert len(said) == (rank != "1")
    assert all("None of the 4 samples has a caption" in message for message in said)


def test_how_often_a_sample_is_repeated_is_part_of_what_is_learned(tmp_path):
    data, cache = write_edits(tmp_path / "set"), str(tmp_path / "cache")

    def hashed(path):
        return look(EmbeddedEditBackbone, SETTINGS | {"data": str(path), "cache": cache}).sha256

    def repeated(times):
        lines = '[[datasets]]\nimage_directory = "targets"\ncontrol_directory = "sources"\n'
        (data / "set.toml").write_text(f"{lines}num_repeats = {times}\n", encoding="utf-8")
        return hashed(data / "set.toml")

    assert hashed(data) == repeated(1)
    assert len({repeated(times) for times in (1, 2, 3)}) == 3


def test_what_is_there_is_not_read_again(edits, encoders, monkeypatch):
    encode(edits, encoders)
    monkeypatch.setattr(EncodingCache, "get", lambda *_: pytest.fail("read"))
    assert encode(edits, encoders) == list(range(1, len(edits) + 1))


def test_processes_have_equally_much_to_do_where_an_earlier_run_stopped_half_way(edits, encoders):
    names, done = Names.of(encoders), range(len(edits) // 2)
    for index in done:
        edits.read(index, PROMPT, names, encoders)
    cache, work = edits.encodings.cache, []
    for rank in range(4):
        before = cache.report().misses
        encode(edits, encoders, Share(rank, 4))
        work.append(cache.report().misses - before)
    assert sum(work) > 0
    assert len(set(work)) == 1


def test_every_picture_is_hashed_by_one_process_of_all(edits, encoders, monkeypatch):
    monkeypatch.setattr(file_hashes, "_SETTLED_NS", -1)  # the pictures have just been made
    settings = SETTINGS | {"data": str(edits.data.path), "resolution": 64}
    settings |= {"cache": str(edits.encodings.cache.folder)}
    second, hashed = look(EmbeddedEditBackbone, settings), []
    monkeypatch.setattr(file_hashes, "file_sha256", lambda path: hashed.append(path) or file_sha256(path))

    class First(Processes):
        def barrier(self):
            second.encode(Names.of(encoders), encoders, False, Share(1, 2), lambda _: None)
            second.encodings.hashes.save()

    paired_recipe.encode(edits, encoders, False, First(0, 2))
    assert edits.sha256
    assert len(hashed) == len(set(hashed)) == 2 * len(edits)
