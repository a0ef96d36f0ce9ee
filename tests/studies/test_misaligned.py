"""LoRAs out of place: none may stay where it belongs, and an average is of updates, not of factors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core import Adapter
from hywu_core.lora.algebra import average
from hywu_core.studies.misaligned import (
    derangement,
    energy,
    mean_factors,
    means_of_others,
    others_of_a_kind,
    without_mean,
)


def adapters(n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    weights = {}
    for name, (d_out, d_in) in {"a": (5, 7), "b": (7, 4)}.items():
        weights[name] = (torch.randn(n, 2, d_in, generator=g), torch.randn(n, d_out, 2, generator=g))
    return Adapter(weights, scale=0.5)


def updates(adapter):
    return {name: adapter.scale * B @ A for name, (A, B) in adapter.items()}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=6), st.integers(0, 2**31))
def test_shuffling_gives_everyone_the_lora_of_another_operation(counts, seed):
    counts[0] = min(counts[0], sum(counts[1:]))
    counts = [min(count, sum(counts) - count) for count in counts]
    if 2 * max(counts) > sum(counts):
        counts = [2] * len(counts)
    labels = [f"operation {i}" for i, count in enumerate(counts) for _ in range(count)]
    donors = derangement(labels, torch.Generator().manual_seed(seed))
    assert sorted(donors) == list(range(len(labels)))
    assert all(labels[donor] != label for donor, label in zip(donors, labels, strict=True))


def test_shuffles_differ_and_an_impossible_one_is_refused():
    labels = [name for name in "abc" for _ in range(4)]
    shuffles = {tuple(derangement(labels, torch.Generator().manual_seed(seed))) for seed in range(5)}
    assert len(shuffles) == 5
    with pytest.raises(AssertionError, match="one label has 2 of 3 places"):
        derangement(["a", "a", "b"], torch.Generator())


def test_average_pg_is_the_mean_of_the_products_and_not_the_product_of_the_means():
    batch = adapters()
    wanted = {name: update.mean(0) for name, update in updates(batch).items()}
    exact, factors = updates(average(batch)), updates(mean_factors(batch))
    for name, update in wanted.items():
        torch.testing.assert_close(exact[name][0], update)
        assert not torch.allclose(factors[name][0], update, atol=1e-2)


def test_what_is_left_without_the_mean_has_the_mean_nothing():
    batch = adapters()
    for name, rest in updates(without_mean(batch)).items():
        whole = updates(batch)[name]
        torch.testing.assert_close(rest, whole - whole.mean(0), rtol=1e-4, atol=1e-5)


def test_others_are_of_the_same_kind_and_of_another_photograph():
    kinds, photos = ["x", "y", "x", "y", "x", "y"], [0, 0, 1, 1, 2, 2]
    others = others_of_a_kind(kinds, photos)
    assert others == [[2, 4], [3, 5], [4, 0], [5, 1], [0, 2], [1, 3]]
    batch = adapters()
    means = updates(means_of_others(batch, others))
    for name, update in updates(batch).items():
        torch.testing.assert_close(means[name][3], update[[5, 1]].mean(0))
    with pytest.raises(AssertionError, match="have the same value"):
        others_of_a_kind(["x", "x"], [0, 0])


def test_energy_is_told_apart():
    one, other = adapters(1, seed=1), adapters(1, seed=2)
    kinds = ["x", "x", "y", "y"]
    assert energy(Adapter.stack([one] * 4), kinds) == pytest.approx(
        {"common": 1, "kind": 0, "instance": 0}, abs=1e-5
    )
    by_kind = energy(Adapter.stack([one, one, other, other]), kinds)
    assert by_kind["instance"] == pytest.approx(0, abs=1e-5)
    assert by_kind["kind"] > 0.2
    within = energy(Adapter.stack([one, other, one, other]), kinds)
    assert within["kind"] == pytest.approx(0, abs=1e-5)
    assert within["instance"] == pytest.approx(by_kind["kind"])
