"""The training bench at its smallest size: what it promises, and that it would notice another training."""

import json

import pytest

from hywu_core.bench import train_steps
from hywu_core.bench.__main__ import main
from hywu_core.errors import HywuError

TINY = ["train", "--size", "tiny", "--steps", "1", "--threads", "1"]


@pytest.mark.parametrize("further", [[], ["--bf16", "--gradient-checkpointing", "--noise-levels", "2"]])
def test_both_ways_train_alike(further, capsys, tmp_path):
    assert main([*TINY, *further, "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(result["losses"]["ours"]) == len(result["losses"]["plain"]) == 4
    assert result["losses"]["ours"][0] == pytest.approx(result["losses"]["plain"][0], rel=1e-2)
    assert result["throughput_ratio"]["runs"] == 1
    assert result["peak_extra_bytes"]["plain"] > result["peak_extra_bytes"]["ours"] > 0
    assert result["flop"]["plain"] > result["flop"]["ours"] > 0
    printed = capsys.readouterr().out
    assert "ours / plain: throughput" in printed
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
        (["--steps", "0"], "must be positive"),
        (["--noise-levels", "0"], "must be positive"),
        (["--device", "nonsense"], "'nonsense' is not available"),
    ],
)
def test_one_sentence_for_what_cannot_be(arguments, sentence):
    with pytest.raises(HywuError, match=sentence):
        main(["train", "--size", "tiny", *arguments])
