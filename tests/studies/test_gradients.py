"""The gradients study: each row's own gradient, cosines counted right, and a run that says what it found."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hywu_core.backbones.embedded import EmbeddedBackbone
from hywu_core.data.photo_ops import OPS
from hywu_core.errors import HywuError
from hywu_core.lora import LoraSpec
from hywu_core.studies import gradients
from hywu_core.studies.cosines import (
    analyse,
    cluster,
    draw_parts,
    negative_share,
    off_diagonal,
    opposite_against_other,
    square,
)
from hywu_core.studies.draws import Draws, EditMaker, row_losses
from hywu_core.studies.frame import carry_out
from hywu_core.studies.gradients import STUDY, GradientsConfig, row_gradients
from hywu_core.studies.lora_vectors import projection_of
from hywu_core.studies.optimised import fresh_adapter
from hywu_core.studies.statistics import interval, pair_interval

from .numbers import strangers

TINY = GradientsConfig(
    operations=8,
    samples=4,
    shared_samples=3,
    pixels=32,
    rank=1,
    components=64,
    clusters=3,
    shared_steps=3,
    shared_batch=4,
)
RECORD = Path(gradients.__file__).parent / "results" / "gradients"


def alone(backbone, shared, edits):
    """The gradient (F,) of one edit with respect to the shared LoRA itself: B, then A unless B is zero."""
    own = shared.map(lambda x: x.clone().requires_grad_())
    moving = [B for _, B in own.values()]
    if any(B.any() for B in moving):
        moving += [A for A, _ in own.values()]
    found = torch.autograd.grad(row_losses(backbone, own, edits).sum(), moving)
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("point", ["start", "moved"])
def test_one_backward_pass_gives_every_edit_its_own_gradient(point):
    backbone, maker = EmbeddedBackbone.load(), EditMaker()
    spec = LoraSpec.from_module(backbone.transformer, rank=2, alpha=2)
    shared = fresh_adapter(spec, 1, seed=0)
    if point == "moved":
        noise = torch.Generator().manual_seed(1)
        shared = shared.map(lambda x: x + 0.05 * torch.randn(x.shape, generator=noise))
    edits = maker.edits("negative", Draws.make(3, 32, "train", seed=0))
    together, losses = row_gradients(backbone, shared, edits)
    assert losses.shape == (3,)
    for row in range(3):
        expected = alone(backbone, shared, edits.rows([row]))
        torch.testing.assert_close(
            together[row], expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-3
        )


def test_a_projection_keeps_cosines_about_as_they_are():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(6, 4000)).astype(np.float32)
    points[1] = points[0] + 0.3 * points[1]
    projected = projection_of(4000, 1000, seed=0).transform(points)
    wanted, found = np.corrcoef(points), np.corrcoef(projected)
    assert np.abs(found - wanted).max() < 0.12


def test_cosines_of_one_draw_are_left_out():
    block = np.array([[1.0, 0.2, -0.4], [0.6, 1.0, 0.0], [-0.2, 0.8, 1.0]])
    assert sorted(off_diagonal(block)) == [-0.4, -0.2, 0.0, 0.2, 0.6, 0.8]
    assert negative_share(block) == pytest.approx(2 / 6)
    parts = draw_parts(block)
    assert parts.mean() == pytest.approx(off_diagonal(block).mean())
    row, column = (0.2 - 0.4) / 2, (0.6 - 0.2) / 2
    assert parts[0] == pytest.approx(row + column - off_diagonal(block).mean())


def test_the_interval_over_draws_is_as_wide_as_means_of_new_draws_vary():
    rng = np.random.default_rng(0)

    def block():
        a, b = rng.normal(0.1, 1, size=(2, 40, 12))
        return a @ b.T / 12

    spread = np.std([off_diagonal(block()).mean() for _ in range(300)])
    said = np.mean([draw_parts(block()).std() / 40**0.5 for _ in range(100)])
    assert said == pytest.approx(spread, rel=0.25)


def test_the_interval_over_pairs_is_as_wide_as_means_over_new_operations_vary():
    """An effect of each operation moves all pairs that it is in."""
    random, count = np.random.default_rng(0), 40
    upper = np.triu_indices(count, 1)

    def pairs() -> np.ndarray:
        effect = random.standard_normal(count)
        return (effect[:, None] + effect + 0.1 * random.standard_normal((count, count)))[upper]

    spread = np.std([pairs().mean() for _ in range(400)])
    widths = [pair_interval(pairs(), upper) for _ in range(20)]
    found = np.mean([each["high"] - each["low"] for each in widths]) / (2 * 1.96)
    assert 0.8 < found / spread < 1.25
    naive = interval(pairs())
    assert (naive["high"] - naive["low"]) / (2 * 1.96) < 0.4 * spread


def test_pairs_that_share_nothing_are_independent():
    values, firsts = np.arange(5.0), np.arange(0, 10, 2)
    assert pair_interval(values, (firsts, firsts + 1)) == interval(values)
    assert pair_interval(values, (firsts, firsts)) == interval(values)


def test_opposites_that_share_nothing_with_their_opposition_are_not_told_apart():
    """An effect of each operation moves many pairs at once, which is no evidence of as many."""
    random, names, small = np.random.default_rng(0), list(OPS), 0
    for _ in range(12):
        effect = random.standard_normal(len(names))
        small += opposite_against_other(effect[:, None] + effect, names, 0)["p"] < 0.05
    assert small <= 3
    cosines = 0.1 * random.standard_normal((len(names),) * 2)
    for i, name in enumerate(names):
        if OPS[name].opposite in names:
            cosines[i, names.index(OPS[name].opposite)] -= 1
    found = opposite_against_other((cosines + cosines.T) / 2, names, 0)
    assert found["difference"] < -0.9
    assert found["p"] == 1e-4


NAMES = ["brighten", "darken", "warm", "cool", "sepia", "cyanotype", "blur", "deblur"]
DIRECTIONS = {
    "brighten": (1, 1),
    "darken": (1, -1),
    "warm": (2, 1),
    "cool": (2, -1),
    "sepia": (3, 1),
    "cyanotype": (3, 1),
}


def made_up(draws=30, dimensions=60):
    """Gradients that are opposite for two opposite pairs, alike for the third, and chance for the rest."""
    rng = np.random.default_rng(0)
    taken = []
    for name in NAMES:
        rows = rng.normal(size=(draws, dimensions)) * 0.4
        axis, sign = DIRECTIONS.get(name, (0, 0))
        rows[:, axis] += 2 * sign
        unit = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).half()
        taken.append({"unit": unit, "norm": torch.ones(draws), "loss": torch.rand(draws)})
    return taken


@pytest.fixture(scope="module")
def analysed():
    return analyse(NAMES, made_up(), clusters=3, seed=0)


def test_conflicts_are_found_where_they_were_put(analysed):
    mean, conflict = square(analysed["mean_cosine"]), square(analysed["conflict_ratio"])
    assert mean[0, 1] < -0.2
    assert conflict[0, 1] > 0.95
    assert mean[4, 5] > 0.2
    assert conflict[4, 5] < 0.05
    assert abs(mean[0, 6]) < 0.03
    assert 0.3 < conflict[0, 6] < 0.7
    low, high = square(analysed["low"]), square(analysed["high"])
    assert (low <= mean + 1e-4).all()
    assert (mean <= high + 1e-4).all()
    kinds = {example["kind"]: set(example["pair"]) for example in analysed["examples"]}
    assert kinds["conflicting"] in ({"brighten", "darken"}, {"warm", "cool"})
    assert kinds["similar"] == {"sepia", "cyanotype"}
    histogram = analysed["examples"][0]
    assert sum(histogram["counts"]) == 30 * 29
    called = analysed["called"]
    assert called["pairs"] == 28
    assert 2 / 28 <= called["conflicting"] <= 4 / 28
    assert 1 / 28 <= called["aligned"] <= 3 / 28
    assert analysed["pairs"]["opposite"]["pairs"] == 4
    assert analysed["pairs"]["within"]["mean_cosine"]["mean"] > 0.2


def test_clusters_are_the_blocks_of_the_matrix_side_by_side():
    blocks = np.kron(np.diag([0.5, 0.3, 0.2]), np.ones((3, 3))) + 0.01
    shuffled = np.random.default_rng(0).permutation(9)
    labels, order = cluster(blocks[np.ix_(shuffled, shuffled)], 3, seed=0)
    assert labels[order].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (shuffled[order] // 3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("gradients")
    return out, carry_out("gradients", STUDY, TINY, out)


def test_a_run_has_everything_of_both_points(found):
    out, result = found
    assert result["points"].keys() == {"start", "shared"}
    for part in result["points"].values():
        assert square(part["mean_cosine"]).shape == (8, 8)
        assert len(part["operations"]) == 8
    assert result["points"]["start"]["mean_cosine"] != result["points"]["shared"]["mean_cosine"]
    assert (out / "gradients.png").stat().st_size > 20_000


def test_the_report_prints_the_numbers_of_the_json(found):
    _, result = found
    text = STUDY.report(json.loads(json.dumps(result)))
    assert strangers(text, result, known=("95%", "B = 0")) == []
    assert "brighten" in text


def test_a_finished_run_takes_no_gradient_again(found, monkeypatch):
    out, result = found
    for name in ("measure", "optimise", "analyse"):
        monkeypatch.setattr(gradients, name, lambda *_: pytest.fail("computed again"))
    assert carry_out("gradients", STUDY, TINY, out) == result


def test_more_clusters_than_operations_are_a_sentence():
    with pytest.raises(HywuError, match="operations is 4; it must be from 7 to 76"):
        GradientsConfig(operations=4)


@pytest.mark.parametrize("rate", [-1.0, 0.0, 2.0, float("nan")])
def test_a_rate_that_teaches_nothing_is_a_sentence(rate):
    with pytest.raises(HywuError, match=r"shared_lr is .*; it must be above 0 and at most 1"):
        GradientsConfig(shared_lr=rate)


@pytest.mark.skipif(not RECORD.exists(), reason="there is no run of record")
def test_the_record_is_whole():
    result = json.loads((RECORD / "result.json").read_text("utf-8"))
    assert len(result["operations"]) >= 60
    assert result["config"]["samples"] >= 200
    assert result["command"].startswith("python -m hywu_core.study gradients")
