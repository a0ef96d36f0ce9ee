"""Times: what the pipelines sample at, and where training times go."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from hywu_core.backbones.sampling import simple_sigmas
from hywu_core.backbones.schedule import FlowSchedule
from hywu_core.errors import HywuError

DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def test_without_a_shift_times_are_even():
    assert FlowSchedule().sigmas(4, 100) == simple_sigmas(4)
    time = torch.rand(10)
    assert torch.equal(FlowSchedule().shift(time, 100), time)


def test_a_fixed_shift():
    schedule = FlowSchedule({"shift": 3.0})
    torch.testing.assert_close(schedule.shift(torch.tensor([0.25, 0.5]), 1), torch.tensor([0.5, 0.75]))


def test_more_tokens_take_more_noise():
    schedule, time = FlowSchedule(DYNAMIC), torch.tensor([0.2, 0.5, 0.9])
    few, many = schedule.shift(time, 256), schedule.shift(time, 4096)
    assert (few > time).all()
    assert (many > few).all()
    assert (many < 1).all()
    torch.testing.assert_close(few[1], torch.tensor(0.5).sigmoid())  # mu = base_shift, at the middle


def test_sampling_and_training_shift_alike():
    schedule = FlowSchedule(DYNAMIC)
    even = torch.linspace(1, 0.25, 4)
    shifted = [*schedule.shift(even, 1000).tolist(), 0]
    assert schedule.sigmas(4, 1000) == pytest.approx(shifted)


def test_what_a_config_leaves_out_is_as_in_flux():
    assert FlowSchedule({"use_dynamic_shifting": True}).sigmas(4, 999) == FlowSchedule(DYNAMIC).sigmas(4, 999)


def test_impossible_steps_are_named():
    with pytest.raises(HywuError, match="0"):
        FlowSchedule(DYNAMIC).sigmas(0, 100)
