"""Settings that make no sense are refused where they are given, in a sentence with the number."""

import math
from types import SimpleNamespace

import pytest
import torch

from hywu_core.data.photo_ops import OPS
from hywu_core.embedded import GENERATOR
from hywu_core.errors import HywuError
from hywu_core.generator import load_generator
from hywu_core.train import recipes
from hywu_core.train.config import TrainConfig
from hywu_core.train.hywu import HywuTask, HywuTrainingConfig
from hywu_core.train.share import Dealing
from hywu_core.train.world import WorldConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("batch_size", 0), ("checkpoint_every", 0), ("warmup", -1), ("accumulate", 0)]
    + [("accumulate", 5), ("ema", 1.0), ("ema", -0.1), ("ema", math.nan), ("weights", "fp8")]
    + [("lr", value) for value in (0.0, -1.0, math.nan, math.inf)]
    + [("grad_clip", math.nan), ("weight_decay", math.nan), ("weight_decay", -0.1)]
    + [("seed", -1), ("seed", 2**63), ("precision", "fp8"), ("device", "abacus"), ("device", "meta")],
)
def test_training_settings_are_checked(name, value):
    with pytest.raises(HywuError, match=str(value)):
        TrainConfig(**{name: value})


def test_a_process_of_many_tries_its_own_gpu(monkeypatch):
    tried = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", lambda n, device: tried.append(device) or torch.zeros(n))
    assert TrainConfig(device="cuda").device == "cuda"
    TrainConfig(device="cpu")
    assert tried == ["cuda:1", "cpu"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base_share", math.nan),
        ("base_share", -1.0),
        ("focus_share", math.inf),
        ("rank", 0),
        ("noise_levels", 0),
        ("photos", 0),
        ("keep", 1.0),
        ("keep", -0.1),
        ("shift", 0.0),
        ("shift", math.nan),
    ],
)
def test_generator_settings_are_checked(name, value):
    with pytest.raises(HywuError, match=f"{name} is {value}"):
        HywuTrainingConfig(**{name: value})


def test_operations_in_focus_come_more_often():
    config = HywuTrainingConfig(base_share=0.5, focus=("blur", "bars"), focus_share=4.0)
    assert OPS["blur"].split == "base" != OPS["bars"].split
    found = [config.weight(name) for name in ("brighten", "blur", "darken", "bars")]
    assert found == [0.5, 2.0, 1.0, 4.0]
    with pytest.raises(HywuError, match="no operation 'tornado' to focus on"):
        HywuTrainingConfig(focus=("blur", "tornado"))


def test_times_of_training_move_towards_noise_only_where_that_is_asked():
    time = torch.tensor([0.0, 0.25, 0.5, 1.0])

    def shifted(**settings):
        return HywuTask.shifted(SimpleNamespace(config=HywuTrainingConfig(**settings)), time, time)

    assert torch.equal(shifted(), time)
    torch.testing.assert_close(shifted(shift=3.0), torch.tensor([0.0, 0.5, 0.75, 1.0]))


@pytest.mark.parametrize(
    "settings", [{"crops": 0}, {"variants": -1}, {"sizes": ((7, 7),)}, {"sizes": ((0, 16),)}]
)
def test_world_settings_are_checked(settings):
    with pytest.raises(HywuError):
        WorldConfig(**settings)


def test_the_rate_warms_up_and_decays_to_nought():
    config = TrainConfig(steps=100, warmup=10, lr=1.0)
    rates = [config.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert config.learning_rate(100) == pytest.approx(0.0)


def test_every_recipe_has_sound_defaults_and_knows_its_settings():
    for name in recipes.names():
        chosen = recipes.recipe(name)
        config, settings = recipes.configure(chosen, {"steps": "3", "lr": "1e-4"})
        assert (config.steps, config.lr) == (3, 1e-4)
        assert settings == chosen.settings
        Dealing(repeats=settings.get("noise_levels", 1)).check(config.batch_size)
        with pytest.raises(HywuError, match=r"no setting 'colour'.*batch_size"):
            recipes.configure(chosen, {"colour": "red"})


def test_the_words_of_a_setting_become_its_type():
    chosen = recipes.recipe("embedded_backbone")
    _, settings = recipes.configure(chosen, {"compile": "true", "crops": "3"})
    assert settings["compile"] is True
    assert settings["crops"] == 3
    for given in ({"compile": "maybe"}, {"crops": "1.5"}, {"lr": "fast"}):
        with pytest.raises(HywuError, match="it must be a"):
            recipes.configure(chosen, given)


def test_the_recipe_of_the_shipped_generator_makes_one_of_its_sizes():
    settings = recipes.recipe("embedded_generator").settings
    shipped = load_generator(GENERATOR)
    assert settings["rank"] == shipped.spec.rank
    assert settings["n_layers"] == shipped.config.n_layers
    assert settings["mlp_ratio"] == shipped.config.mlp_ratio
