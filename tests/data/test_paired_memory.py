"""A million samples fit into memory, and what goes in comes out."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core.data.paired import Picture
from hywu_core.data.paired.collect import Collector
from hywu_core.data.paired.strings import Paths, Strings

ANY = st.text(st.characters(), max_size=12)  # also the halves of surrogates that stand for odd file names


@pytest.mark.parametrize("kind", [Strings, Paths])
@settings(deadline=None)
@given(texts=st.lists(ANY | ANY.map(lambda text: f"/a/b/{text}/c")))
def test_strings_of_any_kind(kind, texts):
    strings = kind()
    for text in texts:
        strings.append(text)
    assert list(strings) == texts
    assert list(pickle.loads(pickle.dumps(strings))) == texts
    with pytest.raises(IndexError):
        strings[len(texts)]


@settings(deadline=None)
@given(ANY.filter(lambda text: "\0" not in text), st.integers(-1, 9), st.integers(-1, 9))
def test_pictures_as_text(name, row, item):
    picture = Picture(f"/d/{name}", row, name if row >= 0 else "", item if row >= 0 else -1)
    assert Picture.from_text(picture.to_text()) == picture


def test_samples_are_small_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(Picture, "exists", lambda self: True)
    samples, count = Collector(), 20_000
    for number in range(count):
        name = f"photograph_{number:07d}.jpg"
        controls = [Picture(f"/data/edits/controls_{n}/{name}") for n in range(1 + number % 2)]
        samples.add(
            Picture(f"/data/edits/targets/{name}"), controls, [f"make number {number} look old and faded"]
        )
    assert samples.nbytes / count < 180
    sample = samples[12_345]
    assert sample.target.path == "/data/edits/targets/photograph_0012345.jpg"
    assert len(sample.controls) == samples.count_controls(12_345) == 2
    assert sample.prompt == "make number 12345 look old and faded"
    assert samples[-1].prompt == samples[count - 1].prompt
    with pytest.raises(IndexError):
        samples[count]


def test_phrasings_stay_apart(monkeypatch):
    monkeypatch.setattr(Picture, "exists", lambda self: True)
    samples = Collector()
    samples.add(Picture("t"), [Picture("c")], ["one\nline", "other"])
    samples.add(Picture("t"), [Picture("c")], [])
    assert (samples[0].prompt, samples[0].also) == ("one\nline", ("other",))
    assert (samples[1].prompt, samples[1].also) == ("", ())
