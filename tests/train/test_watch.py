"""What a run leaves for people to watch: a line of numbers a step, TensorBoard, sheets of pictures."""

import json

import pytest
import torch
from PIL import Image

from hywu_core.train.report import Readings, StepReport
from hywu_core.train.shown import Shown
from hywu_core.train.watch import METRICS, SAMPLES, TENSORBOARD, RunWatch, device_peak, memory_bytes


def report(step, seconds=0.5, **scalars):
    return StepReport(step, loss=1 / step, lr=0.1, grad_norm=2.0, rows=8, seconds=seconds, scalars=scalars)


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]


def scalars_of(folder):
    """{name: {step: value}} as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / TENSORBOARD)).Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_what_a_device_can_do_is_measured_in_the_precision_of_the_run(monkeypatch):
    def ceiling(products, device, dtype, rounds):
        return {
            products[0]: {torch.bfloat16: 3.0}.get(dtype)
            or float(torch.get_float32_matmul_precision() == "high")
        }

    monkeypatch.setattr("hywu_core.train.watch.matmul_ceiling", ceiling)
    device, before = torch.device("cuda"), torch.get_float32_matmul_precision()
    try:
        assert [device_peak(device, precision) for precision in ("fp32", "tf32", "bf16")] == [0.0, 1.0, 3.0]
    finally:
        torch.set_float32_matmul_precision(before)


def test_memory_is_the_machines_where_there_is_a_gpu_that_was_not_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    assert memory_bytes() > 10_000_000


def test_every_step_is_a_line_and_a_point_in_tensorboard(tmp_path):
    with RunWatch(tmp_path, 0) as watch:
        for step in (1, 2):
            watch.on_step(report(step, update_power=0.25))
    first, second = lines(tmp_path)
    assert (first["step"], second["step"]) == (1, 2)
    assert second["loss"] == 0.5
    assert second["samples_per_second"] == 16
    assert second["update_power"] == 0.25
    assert second["memory_gb"] > 0.01
    assert "mfu" not in second  # nobody said what the device can do
    pytest.importorskip("tensorboard")
    assert scalars_of(tmp_path)["loss"] == {1: 1.0, 2: 0.5}


def test_the_share_of_what_the_device_can_do(tmp_path):
    weight = torch.randn(30, 20, requires_grad=True)
    with RunWatch(tmp_path, 0, peak_flops=1e6) as watch:
        for _ in range(2):  # counted once
            with watch.work(rows=8):
                (torch.randn(8, 30) @ weight).sum().backward()
        watch.on_step(report(1))
    product = 2 * 8 * 30 * 20
    assert lines(tmp_path)[0]["mfu"] == pytest.approx(2 * product / 0.5 / 1e6)  # forward and backward


def test_nothing_is_counted_where_the_device_is_not_known(tmp_path):
    with RunWatch(tmp_path, 0) as watch:
        with watch.work(rows=8):
            torch.randn(8, 30) @ torch.randn(30, 20)
        watch.on_step(report(1))
    assert "mfu" not in lines(tmp_path)[0]


def test_pictures_are_a_png_and_an_image_in_tensorboard(tmp_path):
    red, blue = (torch.zeros(3, 24, 32).index_fill(0, torch.tensor(channel), 1.0) for channel in (0, 2))
    with RunWatch(tmp_path, 0) as watch:
        watch.on_show(3, Shown({"held_out_loss": 0.75}, ("before", "after"), [("make it blue", (red, blue))]))
    assert lines(tmp_path) == [{"step": 3, "held_out_loss": 0.75}]
    with Image.open(tmp_path / SAMPLES / "step_000003.png") as page:
        colours = {colour for _, colour in page.convert("RGB").getcolors(1 << 16)}
    assert {(255, 0, 0), (0, 0, 255)} <= colours
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert EventAccumulator(str(tmp_path / TENSORBOARD)).Reload().Images(SAMPLES)[0].step == 3


def test_a_resumed_run_notes_no_step_twice(tmp_path):
    with RunWatch(tmp_path, 0) as watch:
        for step in (1, 2, 3, 4):
            watch.on_step(report(step))
    with (tmp_path / METRICS).open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')  # killed while it wrote
    with RunWatch(tmp_path, 2) as watch:  # the last checkpoint was of step 2
        watch.on_step(report(3, seconds=0.25))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert lines(tmp_path)[-1]["samples_per_second"] == 32
    pytest.importorskip("tensorboard")
    assert sorted(scalars_of(tmp_path)["loss"]) == [1, 2, 3]


class WithoutFloat64(torch.Tensor):
    """A tensor as on Apple's GPUs, which have no float64."""

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_losses_are_read_back_from_devices_without_float64():
    readings = Readings()
    loss, norm = (torch.tensor(value).as_subclass(WithoutFloat64) for value in (0.5, 2.0))
    readings.add(1e-3, 4, loss, norm, {})
    assert readings.numbers().tolist() == [[0.5, 2.0]]
    assert readings.numbers().dtype == torch.float64
