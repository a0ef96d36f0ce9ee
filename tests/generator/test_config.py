import json

import pytest

from hywu_core.errors import HywuError
from hywu_core.generator import GeneratorConfig, ParameterGenerator


def test_survives_json():
    config = GeneratorConfig(condition_dim=7, d_model=32, n_layers=1, mlp_ratio=2.5, output_gain="learned")
    assert GeneratorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_widths():
    config = GeneratorConfig(condition_dim=7, d_model=64, n_heads=4, accumulation=8, mlp_ratio=1.5)
    assert (config.head_dim, config.d_row, config.d_hidden) == (16, 8, 96)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("condition_dim", 0, "condition_dim is 0"),
        ("n_layers", -1, "n_layers is -1"),
        ("n_layers", 1.5, "n_layers is 1.5"),
        ("n_heads", 3, "64 is no multiple of n_heads 3"),
        ("n_heads", 32, "heads of 2 channels"),
        ("accumulation", 5, "64 is no multiple of accumulation 5"),
        ("mlp_ratio", 0, "mlp_ratio is 0"),
        ("mlp_ratio", 0.123, "no whole width"),
        ("norm_eps", float("nan"), "norm_eps is nan"),
        ("rope_theta", 10**400, "rope_theta is 10"),
        ("rope_theta", "10000", "rope_theta is '10000'"),
        ("output_gain", "big", "choose one of none, fixed, learned"),
    ],
)
def test_contradictions_are_named(field, value, complaint):
    values = {"condition_dim": 8, "d_model": 64, "n_heads": 4} | {field: value}
    with pytest.raises(HywuError, match=complaint):
        GeneratorConfig(**values)


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(HywuError, match="does not know depth"):
        GeneratorConfig.from_dict({"condition_dim": 8, "depth": 3})
    with pytest.raises(HywuError, match="lacks condition_dim"):
        GeneratorConfig.from_dict({"d_model": 64})


def test_accumulation_must_divide_the_rank(spec):
    with pytest.raises(HywuError, match="accumulation 8 does not divide the rank 4"):
        ParameterGenerator(GeneratorConfig(condition_dim=8, d_model=64, accumulation=8), spec)
