"""The studies that train, from the command line to the page: tiny, but with everything in them."""

import json
from dataclasses import replace

import pytest

from hywu_core.backbones.embedded import EmbeddedBackbone
from hywu_core.bench.sizes import work
from hywu_core.studies import alignment, conflict, scaling
from hywu_core.studies.lab import Lab
from hywu_core.study import main

from .numbers import strangers

TINY = (
    *("--size", 32, "--samples", 2, "--steps", 1, "--batch", 4, "--rank", 2, "--d-model", 32),
    *("--n-layers", 1, "--photos", 2, "--sampling", 1, "--seeds", 2),
)
LONGER = ("--seeds", 1, "--longer", 2)
KNOWN = ("paper's figure 8", "paper's table 7", "95%")


def study(name, out, *more):
    assert main([str(word) for word in (name, "--quick", *TINY, *more, "--out", out)]) == 0
    return json.loads((out / "result.json").read_text()), (out / "report.md").read_text()


@pytest.fixture
def untrained(monkeypatch):
    """From here on nothing is trained or edited any more."""

    def stop():
        def refuse(*_, **__):
            raise AssertionError("computed again")

        for name in ("train", "judge", "_search_loss"):
            monkeypatch.setattr(Lab, name, refuse)

    return stop


def all_again(name, out, untrained, *more):
    """Run once more, without a single training, and drawn from the JSON alone."""
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    untrained()
    study_again = [str(word) for word in (name, "--quick", *TINY, *more, "--out", out)]
    assert main(study_again) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == files
    (out / f"{name}.png").unlink()
    assert main([name, "--report", str(out)]) == 0
    assert (out / f"{name}.png").read_bytes() == files[f"{name}.png"]


def test_conflict(tmp_path, untrained):
    result, report = study("conflict", tmp_path, *LONGER)
    assert strangers(report, result, KNOWN) == []
    assert result["budget"] == {"steps": [1], "samples": [2], "equal": True}
    learners = result["learners"]
    same, large, long = (table["learners"] for table in result["tables"].values())
    assert same == ["Single LoRA", "Shared LoRA", "SFT", "HY-WU"]
    assert long == [f"{name}, long" for name in same]
    assert result["tables"]["same samples and steps, 2 times as many"]["budget"] == {
        "steps": [2], "samples": [4], "equal": True,
    }  # fmt: skip
    assert learners["base"]["hywu_over_it"] is None
    assert learners["base"]["over_base"] is None
    wanted = learners["HY-WU"]["records"][0]["parameters"]
    for name in set(large) - {"HY-WU"}:
        part = learners[name]
        each = part["records"][0]["parameters"] / part["rank"]
        assert abs(part["records"][0]["parameters"] - wanted) <= each / 2 or part["rank"] == 1
    for operation in [name for pair in conflict.PAIRS for name in pair]:
        assert f"| {operation} |" in report
    assert (tmp_path / "edits.jpg").stat().st_size > 1000
    all_again("conflict", tmp_path, untrained, *LONGER)


def test_alignment(tmp_path, untrained):
    result, report = study("alignment", tmp_path)
    assert strangers(report, result, KNOWN) == []
    assert [line.split(" |")[0][2:] for line in report.splitlines() if line.startswith("| ")][1:7] == result[
        "table"
    ]
    variants = result["variants"]
    for claim in result["claims"]:
        assert claim["difference"]["mean"] == pytest.approx(
            variants[claim["of"]]["mean"]["psnr"]["mean"] - variants[claim["than"]]["mean"]["psnr"]["mean"]
        )
    said = [claim["holds"] for claim in result["claims"] + result["shipped"]["claims"]]
    assert (report.count("This holds"), report.count("does NOT hold")) == (
        said.count(True),
        said.count(False),
    )
    assert sum(result["shipped"]["energy"].values()) == pytest.approx(1)
    assert "## The shipped generator" in report
    mine = alignment.STUDY.report(
        result | {"config": result["config"] | {"generator": "runs/mine.safetensors"}}
    )
    assert "## The generator mine.safetensors" in mine
    assert "shipped" not in mine
    all_again("alignment", tmp_path, untrained)


def test_the_cost_of_a_lora_has_all_its_products():
    learner = scaling.axes_of(scaling.ScalingConfig())["rank"][-1][1]
    generator = scaling._generator(learner, EmbeddedBackbone.load().transformer)
    counted = scaling.costs_of([learner])[learner.name]["gflop"]
    assert counted == pytest.approx(work(generator, 1, scaling.CONDITION_TOKENS, 0) / 1e9, rel=2e-3)


def test_scaling(tmp_path, untrained, monkeypatch):
    axes = scaling.axes_of

    def few(config):
        found = {axis: points[:1] + points[-1:] for axis, points in axes(config).items()}
        found["rank"][1] = (8, replace(found["rank"][1][1], name="of rank 8", rank=8))
        return found

    monkeypatch.setattr(scaling, "axes_of", few)
    result, report = study("scaling", tmp_path, "--seeds", 1)
    assert strangers(report, result, KNOWN) == []
    assert result["budget"]["equal"]
    small, large = (result["settings"][point["setting"]] for point in result["axes"]["size"])
    assert small["gflop"] < large["gflop"]
    assert small["trained_parameters"] < large["trained_parameters"]
    for part in result["settings"].values():
        assert part["records"][0]["parameters"] == part["trained_parameters"]
