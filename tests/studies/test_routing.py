"""The routing study: where edits land, counted right, and a report that says what the JSON says."""

import json
from dataclasses import replace

import pytest
import torch

from hywu_core.data.metrics import EQUAL
from hywu_core.data.photo_ops import OPS
from hywu_core.studies.routing import Routed, exact_results, nearest_operation, report, summarise
from hywu_core.study import main
from hywu_core.train.world import held_out_cases


@pytest.fixture(scope="module")
def cases():
    asked = ("darken", "flip_vertical", "deblur", "denoise", "dehaze")
    return {case.operation: case for case in held_out_cases(asked, 1, 1, area=96 * 96)}


@pytest.mark.parametrize("asked", ["darken", "flip_vertical", "deblur", "denoise", "dehaze"])
def test_the_exact_result_lands_on_its_own_operation(cases, asked):
    case = cases[asked]
    assert nearest_operation(case.target, exact_results(case)) == asked


def test_noise_below_the_distance_between_operations_does_not_move_an_edit(cases):
    case = cases["darken"]
    noise = 0.03 * torch.randn(case.target.shape, generator=torch.Generator().manual_seed(0))
    assert nearest_operation(case.target + noise, exact_results(case)) == "darken"


def test_restoring_is_a_candidate_only_where_the_clean_photograph_is_known(cases):
    assert "deblur" in exact_results(cases["deblur"])
    assert "deblur" not in exact_results(cases["darken"])
    assert exact_results(cases["darken"]).keys() == OPS.keys() - {"deblur", "denoise", "restore"}


def _routed(operation: str, nearest: str, edited: float) -> Routed:
    return Routed(0, operation, "en", "held_out", "words", nearest, edited, 15.0, 10.0, 30.0)


def test_the_summary_counts_and_averages():
    rows = [_routed("warm", "warm", 30.0), _routed("warm", "cool", 20.0), _routed("cool", "cool", 28.0)]
    summary = summarise([*rows, _routed("warm", "cool", 18.0)])
    assert summary["cases"] == 4
    assert summary["accuracy"]["mean"] == 0.5
    assert summary["edited_db"]["mean"] == pytest.approx(24.0)
    assert summary["gain_over_frozen_base_db"]["mean"] == pytest.approx(9.0)
    assert summary["below_ceiling_db"]["mean"] == pytest.approx(6.0)
    assert summary["accuracy"]["low"] <= 0.5 <= summary["accuracy"]["high"]
    assert summary["confusions"] == [{"asked": "warm", "landed": "cool", "times": 2}]


def test_a_photograph_that_is_to_stay_as_it_is_says_nothing_about_the_gain():
    stays = replace(_routed("identity", "identity", 30.0), untouched=EQUAL)
    summary = summarise([_routed("warm", "warm", 30.0), stays])
    assert summary["gain_over_untouched_db"]["mean"] == 20.0
    assert summary["edited_db"]["mean"] == 30.0
    assert summarise([stays])["gain_over_untouched_db"]["mean"] == -70.0  # of nothing else there is a mean


def test_more_edits_of_the_same_operations_do_not_narrow_an_interval():
    """An operation that fails fails in every wording: what is sampled are operations."""
    rows = [_routed(name, "warm", 20.0 + i) for i, name in enumerate(("warm", "cool", "blur", "age"))]
    assert summarise(rows * 4)["edited_db"] == summarise(rows)["edited_db"]
    assert summarise(rows)["edited_db"]["low"] < 21


def test_the_report_prints_the_numbers_of_the_json():
    rows = [_routed("warm", "warm", 30.0), _routed("warm", "cool", 20.0)]
    result = {
        "config": {"wordings": 1, "steps": 8},
        "photographs": 1,
        "subsets": {"unseen words": summarise(rows)},
        "operations": {"warm": summarise(rows)},
    }
    text = report(json.loads(json.dumps(result)))
    for shown in ("50.0%", "| 25.0 [", "warm lands on cool (1 times)"):
        assert shown in text


def test_a_bad_generator_leaves_nothing_behind(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        main(["routing", "--out", str(tmp_path / "out"), "--generator", str(tmp_path / "bad.safetensors")])
    assert not (tmp_path / "out").exists()
