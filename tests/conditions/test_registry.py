"""Encoders by what a generator's file says: found in folders or the cache, never fetched unasked."""

import logging
import os

import huggingface_hub
import pytest
import torch
from torch import nn

from hywu_core.conditions import ConditionEncoder, load_encoder
from hywu_core.conditions.encoder import weights_hash
from hywu_core.errors import HywuError

from .test_siglip2 import cache_model, save_model

INFO = {"kind": "siglip2", "id": "tiny", "dim": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "tiny")
    save_model(folder / "owner" / "patches", naflex=True)
    return folder


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("used the network"))


def test_an_encoder_is_found_by_its_name_in_any_of_the_folders(folder, tmp_path):
    encoder = load_encoder(INFO, [tmp_path, folder])
    assert isinstance(encoder, ConditionEncoder)
    assert encoder.info() == INFO | {"sha256": encoder.sha256}
    assert load_encoder(INFO | {"id": "google/tiny"}, [folder]).id == "tiny"


def test_one_of_the_hub_is_not_taken_for_another_owners(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for owner, width in (("me", 16), ("google", 24)):
        model = save_model(tmp_path / owner, hidden_size=width)
        cache_model(tmp_path, model, f"{owner}/siglip2-base")
    info = {"kind": "siglip2", "id": "siglip2-base"}
    assert load_encoder(info | {"id": "me/siglip2-base"}).dim == 16
    assert load_encoder(info).dim == 24  # files of earlier versions do not name the owner


def test_other_weights_under_the_same_name_are_a_warning(folder, caplog):
    sha256 = load_encoder(INFO, [folder]).sha256
    with caplog.at_level(logging.WARNING, "hywu"):
        load_encoder(INFO | {"sha256": sha256}, [folder])
        assert not caplog.records
        load_encoder(INFO | {"sha256": "0123456789"}, [folder])
    assert "other weights of the encoder tiny (sha256 01234567) than " in caplog.text
    assert f"{folder / 'tiny'} has ({sha256[:8]})" in caplog.text


def test_what_changes_the_tokens_is_taken_from_the_file(folder):
    info = {"kind": "siglip2", "id": "owner/patches", "dim": 16, "max_patches": 7}
    assert load_encoder(info, [folder]).max_patches == 7


def test_the_embedded_one_is_always_there():
    pytest.importorskip("hywu_core.embedded.text")
    encoder = load_encoder({"kind": "embedded"})
    assert isinstance(encoder, ConditionEncoder)
    assert encoder.kind == "embedded"


def test_one_that_is_nowhere_says_where_it_looked_and_how_to_get_it(folder, tmp_path):
    with pytest.raises(HywuError) as refused:
        load_encoder(INFO | {"id": "siglip2-absent"}, [folder, tmp_path])
    for words in (
        "siglip2-absent was not found",
        str(folder),
        str(tmp_path),
        "google/siglip2-absent in the Hugging Face cache",
        "https://huggingface.co/google/siglip2-absent",
        "switch on the download",
    ):
        assert words in str(refused.value)


def test_a_damaged_folder_is_named_and_not_called_absent(tmp_path):
    model = save_model(tmp_path / "tiny")
    os.truncate(model / "model.safetensors", 1000)
    with pytest.raises(HywuError, match="tiny cannot be loaded") as refused:
        load_encoder(INFO, [tmp_path])
    assert "was not found" not in str(refused.value)


def test_another_model_under_the_same_name_is_refused(folder):
    with pytest.raises(HywuError, match=r"gives 16 channels, but the generator learned with tiny of 768"):
        load_encoder(INFO | {"dim": 768}, [folder])


@pytest.mark.parametrize("id", ["../tiny", "/etc", "a/../../b", "C:\\x", "..", "", "a/b/c", "http://x/y"])
def test_an_id_that_leads_elsewhere_is_refused(folder, id):
    with pytest.raises(HywuError, match="is not the name of a model"):
        load_encoder(INFO | {"id": id}, [folder])


def test_kinds_without_a_model_of_their_own_say_what_to_do():
    with pytest.raises(HywuError, match=r"hidden states of its backbone, big, .*connect hidden_states"):
        load_encoder({"kind": "backbone_hidden", "id": "big"})
    with pytest.raises(HywuError, match=r"encoder 'telepathy'.*backbone_hidden, embedded, siglip2"):
        load_encoder({"kind": "telepathy"})


def test_a_hash_of_weights_does_not_depend_on_how_they_are_added_up():
    class Reader:
        def __init__(self, seed, dtype=torch.float32):
            torch.manual_seed(seed)
            self.model = nn.Sequential(nn.Linear(1152, 1152), nn.BatchNorm1d(3)).to(dtype)

    before, reader = torch.get_num_threads(), Reader(0)
    try:
        hashes = set()
        for threads in (1, 4, 8):
            torch.set_num_threads(threads)
            hashes.add(weights_hash(reader))
    finally:
        torch.set_num_threads(before)
    assert len(hashes) == 1
    others = {weights_hash(other) for other in (Reader(1), Reader(0, torch.bfloat16))}
    assert len(hashes | others) == 3
