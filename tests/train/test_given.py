"""What a command line says of a new run: once, whole, complete, and nothing without effect."""

import re

import pytest

from hywu_core.errors import HywuError
from hywu_core.train import recipes
from hywu_core.train.__main__ import main, parser, plan
from hywu_core.train.given import begin, overrides

from ..commands import refused


def planned(*arguments):
    return plan(parser().parse_args([*map(str, arguments)]))


@pytest.mark.parametrize(
    ("steps", "warmup"), [(3, 1), (30, 3), (150, 15), (1499, 149), (1600, 150), (1900, 150), (9000, 150)]
)
def test_a_shorter_run_warms_up_for_less(steps, warmup):
    config, _ = begin(recipes.recipe("embedded_generator"), {"steps": str(steps)})
    assert config.warmup == warmup
    rates = [config.learning_rate(step) for step in range(steps)]
    assert max(rates) == config.lr > rates[-1]
    assert begin(recipes.recipe("embedded_generator"), {"warmup": "1899"})[0].warmup == 1899


SAID = {
    "a run that only warms up": (
        ("--steps", 20, "--set", "warmup=20"),
        "warmup is 20, and the run has only 20",
    ),
    "a plan of such a run": (
        ("--plan", "--steps", 20, "--set", "warmup=20"),
        "warmup is 20, and the run has on",
    ),
    "a rate twice": (
        ("--lr", "1e-3", "--set", "lr=2e-3"),
        "lr is given twice, as 1e-3 and with --set lr=2e-3",
    ),
    "a setting twice": (
        ("--set", "crops=2", "--set", "crops=3"),
        "crops is given twice, as 2 and with --set cr",
    ),
    "sheets of what shows nothing": (
        ("--set", "sample_every=5"),
        "sample_every is without effect on embedded_",
    ),
    "micro-batches by another name": (
        ("--set", "accumulation=2"),
        r"Micro-batches of a step are accumulate=N",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_contradicts_itself_or_does_nothing_is_refused(case, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, named = SAID[case]
    assert re.search(named, refused(main, *arguments, folder=tmp_path, capfd=capfd))


def test_the_same_value_may_be_said_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("--lr", "1e-3", "--set", "lr=0.001", "--allow-download", "--set", "allow-download=true")
    (tmp_path / "data").mkdir()
    given += ("--data", "data", "--set", f"data={tmp_path / 'data'}")
    told = overrides(parser().parse_args([*given]))
    assert told["data"] == str(tmp_path / "data")
    with pytest.raises(HywuError, match="data is given twice"):
        overrides(parser().parse_args([*given, "--set", "data=."]))


def test_the_strength_stays_when_the_rank_is_another():
    chosen = recipes.recipe("flux_kontext")
    for given, alpha in (
        ({}, 16),
        ({"rank": "32"}, 32),
        ({"rank": "32", "alpha": "16"}, 16),
        ({"alpha": "8"}, 8),
    ):
        assert begin(chosen, given)[1]["alpha"] == alpha
    # as a run begun by an earlier version goes on
    assert recipes.configure(chosen, {"rank": 32, "alpha": 16.0})[1]["alpha"] == 16


def test_a_run_knows_whole_paths_however_they_were_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kontext").mkdir()
    models = ("--set", "backbone=kontext", "--set", "encoder=google/siglip2")
    settings = planned("--recipe", "flux_kontext", "--set", "data=mine", *models).settings
    assert settings["data"] == str(tmp_path / "mine")
    assert settings["cache"] == str(tmp_path / "runs" / "cache")
    assert (settings["backbone"], settings["encoder"]) == (str(tmp_path / "kontext"), "google/siglip2")
    given = ("--recipe", "embedded_generator", "--set")
    assert planned(*given, "init=a.safetensors").settings["init"] == str(tmp_path / "a.safetensors")
    assert planned(*given, "crops=2").settings["init"] == ""
    assert planned("--recipe", "embedded").settings["backbone"] == ""


@pytest.mark.parametrize(
    ("kind", "idle"),
    [
        ("hywu", None),
        ("shared_lora", "d_model, encoder"),
        ("sft", "d_model, encoder, rank, strength_penalty"),
    ],
)
def test_what_has_no_effect_on_a_baseline_is_told(kind, idle, caplog):
    given = {"adaptation": kind, "d_model": "64", "encoder": "x", "rank": "4", "strength_penalty": "0.1"}
    begin(recipes.recipe("flux_kontext"), given)
    assert [record.message for record in caplog.records] == (
        [f"Of no effect on {kind}: {idle}."] if idle else []
    )


def test_what_accumulation_is_not_is_told(caplog):
    begin(recipes.recipe("flux_kontext"), {"accumulation": "2"})
    begin(recipes.recipe("flux_kontext"), {"accumulation": "2", "accumulate": "2"})
    assert len(caplog.records) == 1
    assert "micro-batches of a step are accumulate=N" in caplog.text
