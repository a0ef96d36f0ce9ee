"""The photographs open, are credited, are split whole, and their crops are what training expects."""

import re

import pytest
import torch

from hywu_core.data.photos import (
    FOLDER,
    HELD_OUT,
    list_photos,
    load_photo,
    load_tensors,
    random_crops,
    to_tensor,
)
from hywu_core.errors import HywuError


def test_22_photographs_are_split_whole():
    train, held_out = list_photos("train"), list_photos("held_out")
    assert len(train) + len(held_out) == 22
    assert not set(train) & set(held_out)
    assert set(held_out) == set(HELD_OUT)
    assert 4 <= len(held_out) <= 5
    with pytest.raises(HywuError, match="no split 'test'"):
        list_photos("test")


@pytest.mark.parametrize("name", list_photos("train") + list_photos("held_out"))
def test_photographs_open_without_metadata_at_most_896_wide(name):
    photo = load_photo(name)
    assert photo.mode == "RGB"
    assert 300 <= min(photo.size) <= max(photo.size) <= 896
    assert not photo.getexif()


def test_a_missing_photograph_or_a_path_is_one_sentence():
    for name in ("nessie", "../photos/cat"):
        with pytest.raises(HywuError, match="no photograph"):
            load_photo(name)


def test_every_photograph_is_credited_with_a_licence_and_nothing_else_is():
    credits = (FOLDER / "CREDITS.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:-1] for row in credits.splitlines() if row.startswith("| `")]
    named = {re.fullmatch(r"`(\w+)\.jpg`", row[0].strip())[1] for row in rows}
    assert named == set(list_photos("train") + list_photos("held_out"))
    for _, title, author, licence, package in rows:
        assert title.strip()
        assert author.strip()
        assert package.strip()
        assert licence.strip() == "public domain" or "https://creativecommons.org/" in licence
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4 * 2**20


def test_crops_follow_their_generator():
    photos = load_tensors("held_out")
    first, again, other = (
        random_crops(photos, 6, (48, 80), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (6, 3, 48, 80)
    assert first.dtype == torch.float32
    assert 0 <= first.min() <= first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_crops_without_jitter_keep_the_colours_and_are_antialiased():
    checkers = torch.zeros(3, 400, 400, dtype=torch.uint8)
    checkers[0, ::2, ::2] = checkers[0, 1::2, 1::2] = 255
    crops = random_crops([checkers], 8, (64, 64), torch.Generator().manual_seed(0), jitter=False)
    assert crops[:, 1:].abs().max() == 0
    # A crop shows at least 150 pixels of these on 64: nothing but their mean may be left.
    assert (crops[:, 0] - 0.5).abs().max() < 0.1


def test_crops_of_a_photograph_smaller_than_asked_for():
    tiny = to_tensor(load_photo("cat").resize((40, 20)))
    crops = random_crops([tiny], 3, (64, 32), torch.Generator().manual_seed(0))
    assert crops.shape == (3, 3, 64, 32)
    assert crops.isfinite().all()
