"""Which samples make up a batch: shapes that can be stacked, an order that seed and step decide."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from hywu_core.data.paired import Picture, Sample
from hywu_core.data.paired.buckets import Buckets, Layout, crop_box, group, layout_of
from hywu_core.data.paired.sampler import Batches
from hywu_core.errors import HywuError

BUCKETS = st.builds(
    Buckets,
    area=st.integers(64**2, 1400**2),
    divisor=st.sampled_from([1, 8, 16, 28, 32, 64]),
    longest=st.floats(1, 5),
    upscale=st.booleans(),
)
PIXELS = st.integers(1, 5000)


@settings(deadline=None)
@given(BUCKETS, PIXELS, PIXELS)
def test_a_bucket_is_a_multiple_within_the_area_and_near_the_shape(buckets, width, height):
    high, wide = buckets.size(width, height)
    assert high % buckets.divisor == wide % buckets.divisor == 0
    assert 0 < high * wide <= buckets.area
    assert max(high / wide, wide / high) <= max(buckets.longest, 1)
    if (high, wide) in buckets.sizes:
        error = abs(math.log(wide / high / (width / height)))
        assert all(error <= abs(math.log(w / h / (width / height))) + 1e-6 for h, w in buckets.sizes)
    else:
        assert not buckets.upscale
        assert 0 <= height - high < buckets.divisor
        assert 0 <= width - wide < buckets.divisor


@settings(deadline=None)
@given(BUCKETS)
def test_every_shape_is_there_lying_and_standing(buckets):
    assert {(w, h) for h, w in buckets.sizes} == set(buckets.sizes)


def test_the_usual_megapixel_buckets():
    buckets = Buckets(1024**2, 16)
    assert buckets.size(1000, 1000) == (1024, 1024)
    assert buckets.size(3000, 2000) == (832, 1248)
    assert buckets.size(1080, 1920) == (1360, 768)
    assert Buckets(1024**2, 16, upscale=False).size(500, 333) == (320, 496)
    assert Buckets(1024**2, 16, longest=2).size(9000, 1000) in {(720, 1440), (704, 1408)}


@settings(deadline=None)
@given(BUCKETS, PIXELS, PIXELS)
@example(Buckets(1024**2), 5472, 3648)
@example(Buckets(768**2), 1440, 900)
def test_the_crop_has_the_shape_of_the_bucket_and_touches_two_sides(buckets, width, height):
    size = buckets.size(width, height)
    left, top, right, bottom = crop_box(width, height, size)
    assert 0 <= left < right <= width  # exactly: Pillow refuses a box that a rounding has put outside
    assert 0 <= top < bottom <= height
    assert math.isclose((right - left) / (bottom - top), size[1] / size[0], rel_tol=1e-6)
    assert math.isclose(right - left, width) or math.isclose(bottom - top, height)


@pytest.mark.parametrize(
    "wrong", [{"area": 100}, {"area": 2**20, "divisor": 0}, {"area": 2**20, "longest": 0.5}]
)
def test_buckets_that_cannot_be(wrong):
    with pytest.raises(HywuError):
        Buckets(**wrong)


def test_layouts_by_sizes_and_number_of_controls(tmp_path):
    def picture(name, width, height, turned=False):
        exif = Image.Exif()
        exif[0x0112] = 6 if turned else 1
        Image.new("RGB", (width, height)).save(tmp_path / name, exif=exif)
        return Picture(str(tmp_path / name))

    wide, also_wide = picture("a.jpg", 90, 60), picture("b.jpg", 60, 90, turned=True)
    tall, square = picture("c.jpg", 60, 90), picture("d.jpg", 64, 64)
    samples = [
        Sample(wide, (square,), ""),
        Sample(also_wide, (square,), ""),
        Sample(tall, (square,), ""),
        Sample(wide, (square, tall), ""),
        Sample(wide, (tall,), ""),
    ]
    buckets = Buckets(64 * 64, 8)
    assert group(layout_of(sample, buckets) for sample in samples)[1] == [0, 0, 1, 2, 0]
    layouts, numbers = group(layout_of(sample, buckets, buckets) for sample in samples)
    assert numbers == [0, 0, 1, 2, 3]
    assert layouts[2] == Layout(layouts[0].target, ((64, 64), layouts[1].target))
    with pytest.raises(HywuError, match="There is no image"):
        layout_of(Sample(Picture(str(tmp_path / "e.jpg")), (), ""), buckets)


GROUPS = st.lists(st.integers(0, 4), min_size=1, max_size=60)
SETTINGS = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 7),
        "seed": st.integers(0, 2**64 - 1),
        "tail": st.sampled_from(["short", "drop"]),
    }
)


def ranks(groups, world, **settings) -> list[Batches]:
    try:
        return [Batches(groups, rank=rank, world=world, **settings) for rank in range(world)]
    except HywuError:  # fewer batches than ranks
        assume(False)


@settings(deadline=None)
@given(GROUPS, SETTINGS, st.integers(1, 4), st.integers(0, 5))
def test_an_epoch_has_every_sample_once_over_all_ranks(groups, settings, world, epoch):
    parts = ranks(groups, world, **settings)
    steps = parts[0].steps_per_epoch
    batches = [part.at(epoch * steps + step) for step in range(steps) for part in parts]
    left_over = parts[0].batches_per_epoch - steps * world
    seen = Counter(index for batch in batches for index in batch)
    assert 0 <= left_over < world
    for batch in batches:
        assert len({groups[index] for index in batch}) == 1
        assert 0 < len(batch) <= settings["batch_size"]
        assert settings["tail"] == "short" or len(batch) == settings["batch_size"]
    assert set(seen.values()) <= {1}
    if settings["tail"] == "short" and not left_over:
        assert len(seen) == len(groups)


@settings(deadline=None)
@given(GROUPS, st.integers(1, 7), st.integers(0, 2**64 - 1), st.integers(1, 4), st.integers(1, 6), st.data())
def test_whole_batches_have_every_sample_equally_often_however_rare_its_shape(
    groups, size, seed, world, epochs, data
):
    repeats = data.draw(st.lists(st.integers(1, 3), min_size=len(groups), max_size=len(groups)))
    rows = Counter()
    for layout, often in zip(groups, repeats, strict=True):
        rows[layout] += often
    whole = {layout: n * epochs // size for layout, n in rows.items()}
    parts = [Batches(groups, size, seed, rank, world, "carry", repeats) for rank in range(world)]
    batches = [parts[i % world].at(i // world) for i in range(sum(whole.values()))]
    seen = Counter(index for batch in batches for index in batch)
    for batch in batches:
        assert len(batch) == size
        assert len({groups[index] for index in batch}) == 1
    assert Counter(groups[batch[0]] for batch in batches) == Counter(whole)
    for index, layout in enumerate(groups):
        done = whole[layout] * size // rows[layout]  # epochs of the layout, the last of which is begun
        assert done * repeats[index] <= seen[index] <= (done + 1) * repeats[index]


def test_a_sample_of_a_shape_of_its_own_is_drawn_as_often_as_any_other():
    batches = Batches([0] * 100 + [1], batch_size=8, tail="carry")
    seen = Counter(index for step in range(101 * 8) for index in batches.at(step))
    assert seen[100] == 64
    assert set(seen.values()) <= {63, 64, 65}
    assert batches.rare() == (1, 1)


@settings(deadline=None)
@given(GROUPS, SETTINGS, st.integers(0, 40), st.booleans())
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(groups, settings, step, carry):
    settings = settings | ({"tail": "carry"} if carry else {})
    [whole] = ranks(groups, 1, **settings)
    stream = whole.from_step()
    for _ in range(step):
        next(stream)
    [resumed] = ranks(groups, 1, **settings)
    again = resumed.from_step(step)
    assert [next(stream) for _ in range(5)] == [next(again) for _ in range(5)]


def test_epochs_and_seeds_have_orders_of_their_own_and_samples_that_wait_come_later():
    batches = Batches([0] * 64, batch_size=4, seed=1)
    assert batches.at(0) != batches.at(16)
    assert batches.at(0) != Batches([0] * 64, batch_size=4, seed=2).at(0)
    left_out = Batches([0] * 10, batch_size=4, tail="drop")
    assert {index for step in range(20) for index in left_out.at(step)} == set(range(10))


def test_the_order_is_the_same_in_every_version():
    batches = Batches([0, 1, 0, 1, 0, 0, 1], batch_size=2, seed=7)
    assert [batches.at(step) for step in range(4)] == ORDER


ORDER = [[4, 0], [2, 5], [1, 6], [3]]


def test_repeated_samples_come_as_often_as_they_are_repeated():
    batches = Batches([0, 0, 1], batch_size=2, repeats=[1, 3, 2])
    seen = Counter(index for step in range(batches.steps_per_epoch) for index in batches.at(step))
    assert seen == {0: 1, 1: 3, 2: 2}


def test_a_million_samples_are_no_trouble():
    batches = Batches(np.arange(1_000_000) % 7, batch_size=8, rank=3, world=64)
    assert len(batches.at(10**6)) == 8


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch_size": 0}, "A batch of 0 samples"),
        ({"batch_size": 8, "rank": 2, "world": 2}, "no rank 2 of 2"),
        ({"batch_size": 8, "world": 2}, r"3 samples make 1 batches of 8, too few for 2 processes"),
        ({"batch_size": 8, "tail": "drop"}, r"3 samples make 0 batches"),
        ({"batch_size": 1, "tail": "some"}, "no way 'some'"),
        ({"batch_size": 1, "repeats": [1]}, "1 repeats are given for 3 samples"),
    ],
)
def test_batches_that_cannot_be(settings, sentence):
    with pytest.raises(HywuError, match=sentence):
        Batches([0, 0, 0], **settings)
    with pytest.raises(HywuError, match="no step -1"):
        Batches([0, 0, 0], batch_size=1).at(-1)
