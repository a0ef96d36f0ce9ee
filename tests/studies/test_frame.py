"""What all studies share: a command line, parts that are kept, a report and a figure of the JSON alone."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hywu_core import study as command_line
from hywu_core.errors import HywuError
from hywu_core.storage import file_sha256
from hywu_core.studies import QUESTIONS
from hywu_core.studies.frame import OfGenerator, Study, StudyConfig, carry_out, dumps, option, redraw
from hywu_core.studies.statistics import clustered_interval, interval, more_often_larger
from hywu_core.studies.style import panel, sheet
from hywu_core.study import main

from ..commands import refused
from .numbers import strangers


@dataclass(frozen=True)
class TossConfig(StudyConfig):
    coins: int = option(4, "how many are tossed", quick=2)

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("coins")


class Tosses:
    """A study of coins, which counts what it computes and can be stopped before a coin."""

    def __init__(self, stop=None):
        self.made, self.stop = [], stop

    def study(self):
        return Study(TossConfig, self.run, self.report, self.figure)

    def run(self, config, work):
        heads = [work.unit("coin", str(i), make=lambda i=i: self.toss(i)) for i in range(config.coins)]
        blank = work.tensors("blank coin", make=lambda: {"x": torch.zeros(2)})
        return {"heads": heads, "share": interval(heads), "blank": blank["x"].tolist()}

    def toss(self, number):
        if number == self.stop:
            raise KeyboardInterrupt
        self.made.append(number)
        return number % 2

    @staticmethod
    def report(result):
        return f"# Tosses\n\n{result['share']['mean']:.2f} of {result['config']['coins']} were heads.\n"

    @staticmethod
    def figure(result, path: Path):
        with sheet(path, 2, 2) as drawing:
            panel(drawing.subplots(), "a", "tosses").plot(result["heads"])


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(QUESTIONS, "tosses", "is it heads?")


def test_a_result_says_what_it_is_of(tmp_path):
    result = carry_out("tosses", Tosses().study(), TossConfig(seed=7), tmp_path / "out", "the command")
    assert result == json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["study"], result["question"]) == ("tosses", "is it heads?")
    assert (result["command"], result["config"]["seed"], result["config"]["coins"]) == ("the command", 7, 4)
    assert result["heads"] == [0, 1, 0, 1]
    assert len(result["code"]["revisions"]) == 1
    assert {len(sha) for sha in result["weights"].values()} == {64}
    weights = ", ".join(
        f"{name} {result['weights'][key][:8]}"
        for name, key in (("autoencoder",) * 2, ("backbone",) * 2, ("text encoder", "text_encoder"))
    )
    told = (tmp_path / "out" / "report.md").read_text()
    assert told == f"# Tosses\n\n0.50 of 4 were heads.\n\nWeights: {weights}.\n"
    assert (tmp_path / "out" / "tosses.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_finished_is_not_computed_again(tmp_path):
    stopped = Tosses(stop=2)
    with pytest.raises(KeyboardInterrupt):
        carry_out("tosses", stopped.study(), TossConfig(), tmp_path)
    assert not (tmp_path / "result.json").exists()
    resumed, whole = Tosses(), Tosses()
    result = carry_out("tosses", resumed.study(), TossConfig(), tmp_path)
    assert (stopped.made, resumed.made) == ([0, 1], [2, 3])
    assert result == carry_out("tosses", whole.study(), TossConfig(), tmp_path / "fresh")
    again = Tosses(stop=0)
    assert carry_out("tosses", again.study(), TossConfig(), tmp_path) == result


def test_parts_of_another_config_are_not_mixed_in(tmp_path):
    carry_out("tosses", Tosses().study(), TossConfig(), tmp_path)
    with pytest.raises(HywuError, match=r"config\.coins is 4 there and 3 now\. Give another --out"):
        carry_out("tosses", Tosses().study(), TossConfig(coins=3), tmp_path)


def test_report_and_figure_are_drawn_again_from_the_json_alone(tmp_path):
    carry_out("tosses", Tosses().study(), TossConfig(), tmp_path)
    names = ("report.md", "tosses.png")
    before = [(tmp_path / name).read_bytes() for name in names]
    for name in names:
        (tmp_path / name).unlink()
    redraw("tosses", Tosses(stop=0).study(), tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "run the study first"),
        ("{", "is not a result of a study"),
        ('{"study": "quantise"}', "is not a result of the study 'routing'"),
    ],
)
def test_no_result_to_draw_is_a_sentence(tmp_path, capfd, text, sentence):
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    assert sentence in refused(main, "routing", "--report", tmp_path, folder=tmp_path, capfd=capfd)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--steps", 0), "steps is 0; it must be at least 1"),
        (("--seed", -1), "seed is -1"),
        (("--seed", 2**32), "seed is 4294967296; it must be between 0 and 2^32 - 1"),
        (("--device", "abacus"), "The device 'abacus' is not available here"),
        (("--wordings", 4), "wordings is 4; there are only 3 held-out phrases for "),
    ],
)
def test_bad_options_are_sentences_and_leave_nothing(tmp_path, capfd, arguments, sentence):
    out = ("--out", tmp_path / "out")
    assert sentence in refused(main, "routing", *out, *arguments, folder=tmp_path, capfd=capfd)


@pytest.mark.parametrize(
    ("name", "begins_with"),
    [
        ("routing", "held_out_cases"),
        ("quantise", "held_out_cases"),
        ("geometry", "Draws.make"),
        ("gradients", "Draws.make"),
    ],
)
def test_the_best_device_there_is_can_be_asked_for(name, begins_with, tmp_path, monkeypatch):
    def loaded(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"hywu_core.studies.{name}.{begins_with}", loaded)
    with pytest.raises(KeyboardInterrupt):
        main([name, "--quick", "--device", "auto", "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("name", ["conflict", "gradients", "scaling"])
def test_studies_that_use_no_generators_file_do_not_take_one(tmp_path, name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--out", str(tmp_path / "out"), "--generator", "other.safetensors"])
    assert "unrecognized arguments: --generator" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True)
class OtherTossConfig(OfGenerator, TossConfig):
    coins: int = option(3, "how many are tossed")


def test_the_weights_of_a_result_are_those_that_were_used(tmp_path):
    (tmp_path / "mine").write_bytes(b"weights")
    without = carry_out("tosses", Tosses().study(), TossConfig(), tmp_path / "a")
    other = replace(Tosses().study(), config=OtherTossConfig)
    given = carry_out("tosses", other, OtherTossConfig(generator=tmp_path / "mine"), tmp_path / "b")
    assert given["weights"].pop("generator") == file_sha256(tmp_path / "mine")
    assert given["weights"] == without["weights"]
    assert "generator" not in (tmp_path / "a" / "report.md").read_text()
    assert f"generator {file_sha256(tmp_path / 'mine')[:8]}" in (tmp_path / "b" / "report.md").read_text()
    assert given["config"]["coins"] == 3
    with pytest.raises(HywuError, match="coins is 0"):
        OtherTossConfig(coins=0)


def test_quick_changes_defaults_and_not_what_was_given():
    quick, given = TossConfig.made_from({}, True), TossConfig.made_from({"coins": 9}, True)
    assert (quick.coins, given.coins, TossConfig.made_from({}, False).coins) == (2, 9, 4)


def test_every_option_is_on_the_command_line(tmp_path, monkeypatch, capsys):
    module = type("module", (), {"STUDY": Tosses().study()})
    monkeypatch.setattr(command_line, "import_module", lambda *_: module)
    arguments = ["tosses", "--quick", "--coins", "3", "--seed", "5", "--out", str(tmp_path / "my out")]
    assert main(arguments) == 0
    assert "0.33 of 3 were heads" in capsys.readouterr().out
    result = json.loads((tmp_path / "my out" / "result.json").read_text())
    assert result["config"]["seed"] == 5
    assert result["quick"] is True
    assert result["command"].startswith("python -m hywu_core.study tosses --quick --coins 3 --seed 5 --out '")


def test_lists_of_numbers_stand_on_one_line_and_nothing_is_lost():
    data = {"a": [1, -2.5, 3e-07], "b": [], "c": ["x", "[ 1, 2"], "d": [[1, 2], [3, 4]]}
    assert json.loads(dumps(data)) == data
    assert "[ 1, -2.5, 3e-07 ]" in dumps(data)
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumps({"a": float("nan")})


def test_the_interval_holds_the_mean_and_narrows_with_more_values():
    few, many = interval([1.0, 2.0, 3.0, 4.0]), interval([1.0, 2.0, 3.0, 4.0] * 50)
    assert few["low"] < few["mean"] == many["mean"] == 2.5 < few["high"]
    assert many["high"] - many["low"] < 0.3 * (few["high"] - few["low"])


def test_the_interval_of_few_values_is_students():
    found = interval([1.0, 2.0, 3.0, 4.0])
    reach = 3.182446 * (5 / 3) ** 0.5 / 2  # t of three degrees of freedom
    assert (found["low"], found["high"]) == pytest.approx((2.5 - reach, 2.5 + reach))
    assert interval([3.0]) == {"mean": 3.0, "low": None, "high": None}
    assert interval([3.0, 3.0]) == {"mean": 3.0, "low": 3.0, "high": 3.0}


def test_the_interval_over_few_clusters_is_wide_enough():
    random, held = np.random.default_rng(0), 0
    clusters = np.repeat(np.arange(6), 4)
    for _ in range(300):
        found = clustered_interval(np.repeat(random.standard_normal(6), 4), clusters)
        held += found["low"] <= 0 <= found["high"]
    assert held / 300 > 0.91


def test_the_effect_is_how_often_one_is_larger():
    found = more_often_larger([2.0, 4.0], [1.0, 3.0])
    assert found["effect"] == 0.75
    assert more_often_larger(range(50, 90), range(40))["p"] < 1e-9


def test_numbers_that_are_not_in_the_json_are_found():
    result = {"share": 0.2512, "n": 4000, "list": [1, 2, 3], "p": 2.31e-12}
    assert strangers("25.1% of 4,000 in 3 lists, p 2.3e-12 and +0.3", result) == []
    assert strangers("25.2% of 4,001, rank-8", result) == ["25.2", "4,001"]
