"""The command people run. The authors' code cannot be here: ours plays it, under its names."""

import json
import textwrap

import pytest

from hywu_core.bench.__main__ import main
from hywu_core.errors import HywuError

SMALL = ["generator", "--config", "small", "--rounds", "1", "--threads", "1"]


def test_numbers_of_ours_alone(capsys, tmp_path):
    assert main([*SMALL, "--activation-mb", "2", "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["seconds"]["ours"]["runs"] == 1
    assert result["settings"]["activation_bytes"] == 2_000_000
    assert result["share_of_ceiling"]["ours"]["median"] > 0
    assert result["peak_extra_bytes"]["ours"] > 2_000_000
    printed = capsys.readouterr().out
    assert "of ceiling" in printed
    assert "official" not in printed


def test_without_a_file_the_numbers_are_printed(capsys):
    assert main([*SMALL, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"] == "small"


def test_the_plan_needs_no_memory(capsys):
    assert main(["generator", "--config", "release", "--device", "cuda", "--plan"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "16.19 GB" in rows["bfloat16"]
    assert rows["int8"].rstrip().endswith(("11.45 GB", "11.46 GB"))


@pytest.fixture
def authors(tmp_path):
    """A folder shaped like the official repository, whose generator is ours times FACTOR."""
    folder = tmp_path / "official"
    (folder / "wu").mkdir(parents=True)
    (folder / "wu" / "__init__.py").write_text("raise RuntimeError('the pipeline is never imported')")
    (folder / "wu" / "generator.py").write_text(
        textwrap.dedent(
            """
            import torch
            from hywu_core.conditions import Condition
            from hywu_core.generator import ParameterGenerator as Ours
            from hywu_core.generator.release import release_tensors
            from hywu_core.generator.release_config import read_config

            FACTOR = 1.0

            class ParameterGeneratorConfig(dict):
                def __init__(self, **values):
                    super().__init__(values | {"model_type": "parameter_generator"})

            class ParameterGenerator(torch.nn.Module):
                def __init__(self, config):
                    super().__init__()
                    with torch.device("cpu"):
                        self.ours = Ours(*read_config(config))

                def load_state_dict(self, state, assign):
                    with torch.no_grad():
                        for name, tensor in release_tensors(self.ours).items():
                            tensor.copy_(state[name])
                    self.ours.to(state[name].dtype)

                def forward(self, tokens):
                    adapter = self.ours(Condition(tokens))
                    return {
                        f"{name}.lora_{leaf}": tensor * FACTOR
                        for name, pair in adapter.items()
                        for leaf, tensor in zip("AB", pair)
                    } | {"scale": torch.tensor(1.0)}
            """
        )
    )
    return folder


def test_side_by_side_on_the_same_weights(authors, capsys, tmp_path):
    assert main([*SMALL, "--against", str(authors), "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["difference"] < 1e-6
    assert result["time_ratio"]["runs"] == 1
    assert result["memory_ratio"] == pytest.approx(1, abs=0.1)
    assert "ours / official: time" in capsys.readouterr().out


def test_parity_over_random_sizes_and_a_difference_is_an_error(authors, capsys):
    assert main(["generator", "--parity", "3", "--against", str(authors)]) == 0
    assert "largest difference" in capsys.readouterr().out
    code = authors / "wu" / "generator.py"
    other = authors.parent / "other"
    (other / "wu").mkdir(parents=True)
    (other / "wu" / "generator.py").write_text(code.read_text().replace("FACTOR = 1.0", "FACTOR = 1.001"))
    with pytest.raises(HywuError, match=r"differ by 1\.0e-03 .* in float32"):
        main(["generator", "--parity", "1", "--against", str(other)])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rounds", "0"], "rounds is 0; it must be at least 1"),
        (["--threads", "0"], "threads is 0; it must be at least 1"),
        (["--parity", "0", "--against", "."], "parity is 0; it must be at least 1"),
        (["--activation-mb", "-1"], "activation_mb is -1; it must be positive"),
        (["--activation-mb", "0"], "activation_mb is 0; it must be positive"),
        (["--activation-mb", "inf"], "activation_mb is inf; it must be positive and finite"),
        (["--activation-mb", "1e308"], "activation_mb is 1e[+]308; it must be positive and finite"),
        (["--keep-start-mb", "inf"], "keep_start_mb is inf; it must not be negative or infinite"),
        (["--keep-start-mb", "nan"], "keep_start_mb is nan; it must not be negative"),
        (["--keep-start-mb", "-0.5"], "keep_start_mb is -0.5; it must not be negative"),
        (["--parity", "2"], "--against"),
        (["--config", "release"], "GB and 3.0 PFLOP, hours on a CPU"),
        (["--against", "nowhere"], r"no copy of the official repository"),
        (["--device", "nonsense"], "'nonsense' is not available"),
        (["--device", "nonsense", "--plan"], "no kind of device 'nonsense'"),
        (["--json", "no/such/folder/x.json"], "name a file in a folder that exists"),
    ],
)
def test_one_sentence_for_what_cannot_be(arguments, sentence):
    with pytest.raises(HywuError, match=sentence):
        main(["generator", "--config", "small", *arguments])


def test_their_missing_packages_are_named(tmp_path):
    (tmp_path / "wu").mkdir()
    (tmp_path / "wu" / "generator.py").write_text("import a_package_nobody_has")
    with pytest.raises(HywuError, match="a_package_nobody_has"):
        main([*SMALL, "--against", str(tmp_path)])
