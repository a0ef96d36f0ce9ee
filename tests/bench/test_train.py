"""The training bench at its smallest size: what it promises, and that it would notice another training."""

import json

import pytest

from hywu_core.bench import train_steps
from hywu_core.bench.__main__ import main
from hywu_core.bench.train import MICRO, OURS, PLAIN, THRIFTY
from hywu_core.errors import HywuError

TINY = ["train", "--size", "tiny", "--steps", "1", "--threads", "1", "--accumulate", "2"]


@pytest.mark.parametrize("further", [[], ["--bf16", "--gradient-checkpointing", "--noise-levels", "2"]])
def test_both_ways_train_alike(further, capsys, tmp_path):
    assert main([*TINY, *further, "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert {OURS, MICRO} == result["throughput_ratio"].keys() == result["memory_ratio"].keys()
    for ours, beside in result["throughput_ratio"].items():
        assert {THRIFTY} | ({PLAIN} if not further else set()) == beside.keys()
        for name, ratio in beside.items():
            assert len(result["losses"][ours]) == len(result["losses"][name]) == 4
            assert result["losses"][ours][0] == pytest.approx(result["losses"][name][0], rel=1e-2)
            assert ratio["runs"] == 1
            assert result["flop"][name] > result["flop"][ours] > 0
    peak = result["peak_extra_bytes"]
    assert peak[OURS] > peak[MICRO] > 0
    assert peak[THRIFTY] > peak[MICRO]
    if not further:
        assert peak[PLAIN] > peak[THRIFTY]
    printed = capsys.readouterr().out
    assert f"ours / {THRIFTY}: throughput" in printed
    assert "of ceiling" in printed


def test_a_difference_of_the_losses_is_an_error(monkeypatch):
    merged = train_steps.Plain._merged
    monkeypatch.setattr(
        train_steps.Plain, "_merged", lambda step, adapter, scale: merged(step, adapter, 1.1 * scale)
    )
    with pytest.raises(HywuError, match="is not the same training"):
        main(TINY)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--noise-levels", "0"], "noise_levels is 0; it must be at least 1"),
        (["--threads", "0"], "threads is 0; it must be at least 1"),
        (["--accumulate", "3"], "must divide the 2 LoRAs"),
        (["--device", "nonsense"], "'nonsense' is not available"),
    ],
)
def test_one_sentence_for_what_cannot_be(arguments, sentence):
    with pytest.raises(HywuError, match=sentence):
        main(["train", "--size", "tiny", *arguments])
