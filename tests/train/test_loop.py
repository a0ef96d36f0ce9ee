"""The loop's promises, on a task of a few numbers: resuming, interrupting, stopping before harm."""

import math
import shutil
import signal
import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from hywu_core.errors import HywuError
from hywu_core.train.checkpoint import TrainState, read_checkpoint
from hywu_core.train.checkpoint_files import newest
from hywu_core.train.config import TrainConfig
from hywu_core.train.interrupt import deferred_interrupt
from hywu_core.train.loop import Task, train

from ..commands import contents

CONFIG = TrainConfig(steps=6, batch_size=4, lr=0.1, warmup=2, checkpoint_every=2, device="cpu")
RUN = {"recipe": "toy", "config": CONFIG.to_dict(), "settings": {}}


class Toy(Task):
    """Regression to noise; `act(step)` may spoil the step, whose loss it then multiplies."""

    name = "toy"

    def __init__(self, act=lambda step: 1.0) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 1))
        self.step, self.act = 0, act

    def batch(self, size, generator, index):
        return torch.randn(size, 3, generator=generator)

    def loss(self, batch, generator):
        self.step += 1
        noise = torch.randn(len(batch), 1, generator=generator)
        return (self.module(batch) - noise).square().mean() * self.act(self.step)

    def finish(self, out):
        return ""


def ctrl_c_at(*steps):
    """An act that presses Ctrl-C in the middle of some steps."""

    def act(step):
        if step in steps:
            signal.raise_signal(signal.SIGINT)
        return 1.0

    return act


def checkpoint(folder):
    return read_checkpoint(folder)[0]


@pytest.fixture
def whole(tmp_path):
    """The checkpoint of a run that nothing disturbed."""
    folder = tmp_path / "whole"
    folder.mkdir()
    train(Toy(), CONFIG, folder, RUN)
    return checkpoint(folder)


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_an_interrupted_run_continues_to_the_same_bits(tmp_path, whole, stop):
    with pytest.raises(KeyboardInterrupt):
        train(Toy(ctrl_c_at(stop)), CONFIG, tmp_path, RUN)
    assert len(checkpoint(tmp_path)["losses"]) == stop  # the step that was under way is done
    losses = train(Toy(), CONFIG, tmp_path, RUN, resume=True)
    assert len(losses) == CONFIG.steps
    resumed = checkpoint(tmp_path)
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():  # weights, optimiser, random generator, losses
        assert torch.equal(resumed[name], tensor), name


def test_the_checkpoint_holds_weights_optimiser_and_random_numbers(whole):
    names = {name.split(".")[0] for name in whole}
    assert names == {"model", "optimizer", "rng", "losses"}
    assert {name.split(".")[-1] for name in whole if name.startswith("optimizer.")} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    train(Toy(), CONFIG, tmp_path, RUN)
    before = contents(tmp_path)
    assert len(train(Toy(), CONFIG, tmp_path, RUN, resume=True)) == CONFIG.steps
    assert contents(tmp_path) == before


def test_a_second_ctrl_c_stops_at_once_and_keeps_the_checkpoint_before(tmp_path):
    def impatient(step):
        if step == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        train(Toy(impatient), CONFIG, tmp_path, RUN)
    assert len(checkpoint(tmp_path)["losses"]) == 2


def test_the_handler_of_ctrl_c_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt() as pending:
        assert signal.getsignal(signal.SIGINT) is not before
        assert not pending.is_set()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_waits_for_the_end_of_the_block():
    before, reached = signal.getsignal(signal.SIGINT), []

    def block():
        with deferred_interrupt() as pending:
            signal.raise_signal(signal.SIGINT)
            reached.append(pending.is_set())

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_training_works_outside_the_main_thread(tmp_path, whole):
    thread = threading.Thread(target=train, args=(Toy(), CONFIG, tmp_path, RUN))
    thread.start()
    thread.join()
    assert torch.equal(checkpoint(tmp_path)["losses"], whole["losses"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("step", "kept"), [(1, None), (2, None), (3, 2), (4, 2), (6, 4)])
def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_checkpoint(tmp_path, value, step, kept):
    task = Toy(lambda now: value if now == step else 1.0)
    with pytest.raises(HywuError) as caught:
        train(task, CONFIG, tmp_path, RUN)
    assert f"The loss became {value} at step {step}" in str(caught.value)
    if kept is None:
        assert "no checkpoint was written" in str(caught.value)
        assert newest(tmp_path) is None
    else:
        assert f"of step {kept}, is in {tmp_path}" in str(caught.value)
        tensors = checkpoint(tmp_path)
        assert len(tensors["losses"]) == kept
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_ctrl_c_in_a_step_gone_wrong_does_not_save_it(tmp_path):
    def act(step):
        if step == 4:
            signal.raise_signal(signal.SIGINT)
            return math.nan
        return 1.0

    with pytest.raises(HywuError, match="The loss became nan at step 4"):
        train(Toy(act), CONFIG, tmp_path, RUN)
    assert len(checkpoint(tmp_path)["losses"]) == 2


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """A finite loss whose gradient is not: the next loss would tell, but a checkpoint may come before."""
    task = Toy()
    task.act = lambda step: task.module[0].weight[0, 0].mul(0).sqrt() + 1 if step == 4 else 1.0
    with pytest.raises(HywuError, match=r"not finite after step 4.*of step 2"):
        train(task, CONFIG, tmp_path, RUN)
    assert len(checkpoint(tmp_path)["losses"]) == 2


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    saved = TrainState.save

    def fill(state, *arguments):
        if state.step > 2:
            state.settle()
            monkeypatch.setattr("os.fsync", full)
        return saved(state, *arguments)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrainState, "save", fill)
    with pytest.raises(HywuError, match="No space left on device"):
        train(Toy(), CONFIG, tmp_path, RUN)
    assert len(checkpoint(tmp_path)["losses"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_new_run_does_not_inherit_an_old_checkpoint(tmp_path):
    train(Toy(), CONFIG, tmp_path, RUN)
    with pytest.raises(HywuError, match="no checkpoint was written"):
        train(Toy(lambda step: math.nan), CONFIG, tmp_path, RUN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [False, True])
def test_what_somebody_keeps_beside_the_checkpoints_stays(tmp_path, resume):
    """Only `checkpoint-STEP` is the trainer's own; a copy, a choice and a note are not."""
    with pytest.raises(KeyboardInterrupt):
        train(Toy(ctrl_c_at(3)), CONFIG, tmp_path, RUN)
    for name in ("checkpoint-3-backup", "checkpoint-best"):
        shutil.copytree(tmp_path / "checkpoint-3", tmp_path / name)
    (tmp_path / "checkpoint-notes.txt").write_text("The third is good.", encoding="utf-8")
    (tmp_path / "checkpoint-2024").write_text("A file is no checkpoint.", encoding="utf-8")
    kept = {name: it for name, it in contents(tmp_path).items() if not name.startswith("checkpoint-3/")}
    train(Toy(), CONFIG, tmp_path, RUN, resume=resume)
    left = contents(tmp_path)
    del kept["checkpoint-3"]
    assert kept.items() <= left.items()
    assert {name for name in left if "/" not in name} - kept.keys() == {"checkpoint-6"}


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path):
    train(Toy(), CONFIG, tmp_path, RUN)
    other = Toy()
    other.module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(HywuError, match="belongs to another model") as caught:
        train(other, CONFIG, tmp_path, RUN, resume=True)
    assert "\n" not in str(caught.value)


class Table(Toy):
    """Regression on the rows of a table, in order: small batches one after the other make a large one."""

    rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(3))

    def batch(self, size, generator, index):
        return self.rows[index * size : (index + 1) * size]

    def loss(self, batch, generator):
        loss = (self.module(batch[:, :3]) - batch[:, 3:]).square().mean()
        self.scalars = {"twice": 2 * loss.detach()}
        return loss


class Told:
    def __init__(self):
        self.reports = []

    def on_step(self, report):
        self.reports.append(report)

    def work(self, rows):
        return nullcontext()


def test_micro_batches_make_the_step_of_their_whole(tmp_path):
    whole, parts = Table(), Table()
    expected = train(whole, CONFIG, tmp_path, RUN)
    losses = train(parts, replace(CONFIG, accumulate=4), tmp_path, RUN)
    assert losses == pytest.approx(expected, abs=1e-6)
    for one, other in zip(whole.module.parameters(), parts.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_every_step_is_told_in_order(tmp_path):
    told = Told()
    losses = train(Table(), replace(CONFIG, accumulate=2), tmp_path, RUN, watch=told)
    assert [report.step for report in told.reports] == list(range(1, 7))
    assert [report.loss for report in told.reports] == losses
    assert [report.lr for report in told.reports] == [CONFIG.learning_rate(step) for step in range(6)]
    for report in told.reports:
        assert report.rows == CONFIG.batch_size
        assert report.scalars["twice"] == pytest.approx(2 * report.loss)
        assert report.grad_norm > 0
        assert report.seconds > 0


def test_what_is_exported_is_the_average_of_the_weights(tmp_path):
    config, task = replace(CONFIG, ema=0.5), Toy()
    seen = []
    step = torch.optim.AdamW.step

    def spied(optimizer, *arguments):
        result = step(optimizer, *arguments)
        seen.append(task.module[0].weight.detach().clone())
        return result

    expected = task.module[0].weight.detach().clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spied)
        train(task, config, tmp_path, RUN)
    for number, weight in enumerate(seen, start=1):
        expected = expected.lerp(weight, 1 - min(0.5, (1 + number) / (10 + number)))
    torch.testing.assert_close(task.module[0].weight.detach(), expected)
    kept = checkpoint(tmp_path)  # what the run would go on from is not the average
    assert torch.equal(kept["model.0.weight"], seen[-1])
    torch.testing.assert_close(kept["average.0.weight"], expected)


def test_what_is_shown_on_the_way_is_the_average_as_at_the_end(tmp_path):
    class Shows(Toy):
        def show(self):
            seen.append(self.module[0].weight.detach().clone())

    seen, task = [], Shows()
    train(task, replace(CONFIG, ema=0.5, checkpoint_every=2, sample_every=2), tmp_path, RUN)
    (tmp_path / "plain").mkdir()
    for steps, shown in zip((2, 4, 6), seen[:2] + seen[-1:], strict=True):
        one = replace(CONFIG, ema=0.5, steps=steps, checkpoint_every=steps)
        plain = Toy()
        with pytest.MonkeyPatch.context() as patch:  # the rate of the whole run
            patch.setattr(type(one), "learning_rate", lambda _, step, whole=CONFIG.learning_rate: whole(step))
            train(plain, one, tmp_path / "plain", RUN)
        assert torch.equal(plain.module[0].weight, shown)


@pytest.mark.parametrize("settings", [{"ema": 0.9}, {"weights": "bf16", "precision": "bf16", "ema": 0.9}])
def test_every_kind_of_run_continues_to_the_same_bits(tmp_path, settings):
    if "weights" in settings:
        pytest.importorskip("torchao")
    config = replace(CONFIG, **settings)
    (tmp_path / "whole").mkdir()
    train(Toy(), config, tmp_path / "whole", RUN)
    with pytest.raises(KeyboardInterrupt):
        train(Toy(ctrl_c_at(3)), config, tmp_path, RUN)
    train(Toy(), config, tmp_path, RUN, resume=True)
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path)
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    if "weights" in settings:
        assert resumed["model.0.weight"].dtype == torch.bfloat16


def test_what_a_crash_left_half_written_is_no_checkpoint_and_goes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(Toy(ctrl_c_at(3)), CONFIG, tmp_path, RUN)
    half = tmp_path / ".checkpoint-4.tmp"
    half.mkdir()
    (half / "shard-00007-model-00001-of-00001.safetensors").write_bytes(b"half")
    train(Toy(), CONFIG, tmp_path, RUN, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-6"]
    assert len(list((tmp_path / "checkpoint-6").iterdir())) == 2  # one shard, and what it is


def test_sigterm_is_as_good_as_ctrl_c(tmp_path):
    def act(step):
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return 1.0

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(Toy(act), CONFIG, tmp_path, RUN)
    assert len(checkpoint(tmp_path)["losses"]) == 3
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("has", ["no such storage", "one that many processes cannot write to"])
def test_a_torch_without_the_storage_is_told_which_one_has_it(has, tmp_path, monkeypatch):
    import torch.distributed.checkpoint as dcp

    if has == "no such storage":
        monkeypatch.delattr(dcp, "HuggingFaceStorageWriter")
    else:
        monkeypatch.setattr(dcp, "HuggingFaceStorageWriter", lambda path, fqn_to_index_mapping=None: None)
    with pytest.raises(HywuError, match=r"torch 2\.9 or newer; this is torch"):
        train(Toy(), CONFIG, tmp_path, RUN)
    assert not any(tmp_path.iterdir())
