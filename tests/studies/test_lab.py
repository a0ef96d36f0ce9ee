"""Trainings that can be compared: equal budgets, learning rates that were looked for, intervals over both."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hywu_core.errors import HywuError
from hywu_core.studies import lab as laboratory
from hywu_core.studies.compared import budget, differences, gap, stands
from hywu_core.studies.lab import Lab, LabConfig, Learner
from hywu_core.studies.quality import quality
from hywu_core.studies.statistics import crossed_interval
from hywu_core.studies.work import Work
from hywu_core.train.adaptation import KINDS

TINY = LabConfig(
    size=32, samples=2, steps=2, batch=4, rank=2, d_model=32, n_layers=1, photos=1, sampling=1, search_steps=1
)


@pytest.fixture(scope="module")
def lab():
    return Lab(TINY, ("darken", "brighten"))


def test_all_kinds_learn_from_the_same_samples_as_often(lab):
    records = {kind: [lab.train(Learner(kind, kind), seed, 1e-3).record for seed in (3, 4)] for kind in KINDS}
    found = budget(list(records.values()))
    assert found == {"steps": [2], "samples": [4], "equal": True}
    for first, second in records.values():
        assert sum(first["samples"]) == 2 * TINY.batch // TINY.noise_levels
        assert first["seen"] != second["seen"]
    assert len({seeds[0]["parameters"] for seeds in records.values()}) == len(KINDS)
    longer = lab.train(Learner("x", "hywu"), 3, 1e-3, steps=3).record
    assert not budget([[longer], [records["sft"][0]]])["equal"]
    other = records["hywu"][0] | {"seen": "something else"}
    assert not budget([[other], [records["sft"][0]]])["equal"]


def test_what_was_learned_is_what_is_judged(lab):
    trained = lab.train(Learner("x", "single_lora"), 0, 0.3)
    base = [each.result for each in lab.base(0)]
    judged = lab.judge_trained(trained)
    assert not all(torch.equal(each.result, image) for each, image in zip(judged, base, strict=True))
    with torch.no_grad():
        for B in trained.task.module.B:
            B.zero_()
    for each, image in zip(lab.judge_trained(trained), base, strict=True):
        torch.testing.assert_close(each.result, image)
    assert np.shape(lab.scores(judged)["flip"]) == (1, 2)


@pytest.mark.parametrize("best", [1e-3, 9e-3, 1e-4])
def test_the_search_goes_on_until_worse_rates_are_on_both_sides(tmp_path, monkeypatch, best):
    monkeypatch.setattr(Lab, "_search_loss", lambda self, learner, lr: abs(np.log(lr / best)))
    found = Lab(TINY, ("darken",)).choose_rate(Learner("x", "sft"), Work(tmp_path, {}))
    rates = [each["lr"] for each in found["tried"]]
    losses = [each["loss"] for each in found["tried"]]
    assert found["lr"] == rates[int(np.argmin(losses))]
    assert rates[0] < found["lr"] < rates[-1]
    assert rates == sorted(rates)


def test_rates_are_tried_on_other_seeds_and_once(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(laboratory, "_VALIDATION_BATCHES", 1)
    seeds, train = [], Lab.train
    monkeypatch.setattr(
        Lab, "train", lambda self, l, seed, *rest: (seeds.append(seed), train(self, l, seed, *rest))[1]
    )
    first = lab.choose_rate(Learner("x", "shared_lora"), Work(tmp_path, {}))
    tried = len(seeds)
    assert tried >= 3
    assert not set(seeds) & set(lab.seeds)
    assert lab.choose_rate(Learner("x", "shared_lora"), Work(tmp_path, {})) == first
    assert len(seeds) == tried
    unsearched = Lab(replace(TINY, search_steps=0), ("darken",)).choose_rate(Learner("x", "sft"), None)
    assert unsearched == {"lr": laboratory._RATES["sft"], "tried": []}


def test_a_bad_budget_is_a_sentence():
    with pytest.raises(HywuError, match="seeds is 0"):
        LabConfig(seeds=0)
    with pytest.raises(HywuError, match="search_steps is -5; it must be at least 0"):
        LabConfig(search_steps=-5)
    with pytest.raises(HywuError, match="precision is 'half'"):
        LabConfig(precision="half")


def test_quality_knows_the_better_picture():
    random = torch.Generator().manual_seed(0)
    exact = torch.rand(3, 32, 48, generator=random)
    near = (exact + 0.02 * torch.randn(exact.shape, generator=random)).clamp(0, 1)
    far = (exact + 0.2 * torch.randn(exact.shape, generator=random)).clamp(0, 1)
    good, bad, same = (quality(image, exact) for image in (near, far, exact))
    assert good["psnr"] > bad["psnr"]
    assert good["ssim"] > bad["ssim"]
    assert good["flip"] < bad["flip"]
    assert (same["ssim"], same["flip"]) == pytest.approx((1, 0), abs=1e-5)


def test_intervals_are_over_seeds_and_photographs():
    def width(values):
        found = crossed_interval(np.array(values, dtype=float)[:, :, None])
        assert found["low"] <= found["mean"] <= found["high"]
        return found["high"] - found["low"]

    assert width([[1, 1], [1, 1]]) == 0
    assert width([[0, 0], [2, 2]]) > 0
    assert width([[0, 2], [0, 2]]) > 0
    of_seeds = np.repeat([[0], [2], [0], [2]], 4, axis=1)
    assert width(of_seeds + of_seeds.T) > width(of_seeds)


@pytest.mark.parametrize(
    ("seeds", "photos", "spread"), [(3, 4, (1, 1)), (3, 4, (1, 0.2)), (3, 4, (0.2, 1)), (1, 4, (0, 1))]
)
def test_few_seeds_and_photographs_have_intervals_that_hold_the_truth(seeds, photos, spread):
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        of_seed, of_photo = (
            each * random.standard_normal(n) for each, n in zip(spread, (seeds, photos), strict=True)
        )
        noise = 0.2 * random.standard_normal((seeds, photos, 1))
        found = crossed_interval(of_seed[:, None, None] + of_photo[:, None] + noise)
        held += found["low"] <= 0 <= found["high"]
    assert held / 400 > 0.91


def test_one_seed_and_one_photograph_are_no_verdict():
    found = crossed_interval(np.array([[[2.0, 3.0]]]))
    assert found == {"mean": 2.5, "low": None, "high": None}
    assert stands(found) == "not told apart from"
    assert gap(found) == "+2.50 dB [one value]"


def test_what_is_hard_for_all_does_not_blur_a_difference():
    hard = np.array([[[10.0], [30.0]], [[12.0], [28.0]]])
    tables = {name: hard for name in ("psnr", "ssim", "flip")}
    better = {name: table + 1 for name, table in tables.items()}
    found = differences(better, tables)["psnr"]
    assert found == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert (stands(found), stands({"mean": 0, "low": -1, "high": 1})) == ("above", "not told apart from")
    assert stands(differences(tables, better)["psnr"]) == "below"
