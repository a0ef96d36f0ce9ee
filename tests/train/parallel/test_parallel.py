"""A run on many processes is the run on one: losses, gradients, checkpoints, and how it ends.

Real processes under torchrun, one launch for each number of them; what they did is compared here with what
one process does.
"""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hywu_core.errors import HywuError
from hywu_core.train.checkpoint_files import describe, newest
from hywu_core.train.loop import train
from hywu_core.train.parallel import Parallel, ParallelConfig
from hywu_core.train.sharding import can_shard
from hywu_core.train.share import Share

from .tiny import CONFIG, RUN, Model, Tiny, TinyFlux
from .worker import Told, first_gradients, size

ROOT = Path(__file__).resolve().parents[3]
TWO = {
    "replicated": ({"replicate": 2}, {}),
    "sharded": ({}, {"accumulate": 2, "ema": 0.9}),
    "sequence": ({"sequence": 2}, {}),
}
ULYSSES = {"ulysses": ({"sequence": 2, "ulysses": True}, {})}
FOUR = {
    "hybrid": ({"replicate": 2, "shard": 2}, {"accumulate": 2}),
    "sequence of four": ({"sequence": 4}, {}),  # more than one band has layers
    "sharded sequence": ({"shard": 2, "sequence": 2, "recompute": True}, {"ema": 0.9}),
}
LONG = 12  # steps of the run that is killed


def launch(n: int, jobs: list[dict], out: Path) -> subprocess.CompletedProcess:
    """Do these jobs on n processes."""
    (out / f"jobs{n}.json").write_text(json.dumps(jobs))
    worker = Path(__file__).with_name("worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    command += [
        "--monitor-interval",
        "3",
    ]  # torchrun stops the others at once, and they have something to say
    return subprocess.run(
        [*command, str(worker), str(out / f"jobs{n}.json"), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=550,
    )


def step_jobs(cases: dict, task: type = Tiny) -> list[dict]:
    jobs = [{"name": name, "arrangement": a, "settings": s} for name, (a, s) in cases.items()]
    return [{"do": "steps", "task": task.__name__, **job} for job in jobs]


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """Everything two processes are asked to do; their last run is killed."""
    out = tmp_path_factory.mktemp("two")
    jobs = step_jobs(TWO) + step_jobs(ULYSSES, TinyFlux)
    jobs += [
        {"do": "stopped", "name": by, "by": by, "arrangement": {"sequence": s}}
        for by, s in (("ctrl-c", 1), ("sigterm", 1), ("nan", 2))
    ]
    at = random.randrange(5, LONG)  # from then on, step 4 has waited for the checkpoint of step 2
    process = launch(2, [*jobs, {"do": "killed", "name": "killed", "at": at, "n": LONG}], out)
    return process, out, at


@pytest.fixture(scope="module")
def on_four(tmp_path_factory, on_two):
    """Everything four processes are asked to do; they continue what two left."""
    out = tmp_path_factory.mktemp("four")
    (out / "killed").mkdir()
    left = newest(on_two[1] / "killed" / "run")
    copy_checkpoint(left, out / "killed" / "run")
    resumed = {"do": "resumed", "name": "resumed", "source": "killed", "n": LONG}
    process = launch(4, [*step_jobs(FOUR), {**resumed, "arrangement": {"replicate": 2, "shard": 2}}], out)
    assert process.returncode == 0, process.stderr
    return out


def copy_checkpoint(path: Path, run: Path) -> None:
    target = run / path.name
    target.mkdir(parents=True)
    for file in path.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def told(folder: Path, rank: int = 0) -> dict:
    return json.loads((folder / f"told-{rank}.json").read_text())


def check_case(folder: Path, settings: dict, tmp_path: Path, make: type = Tiny) -> None:
    """What many did against what one does here."""
    config = replace(CONFIG, **settings)
    loss, gradients = first_gradients(make(), Parallel(), config)
    task, watch = make(), Told()
    losses = train(task, config, tmp_path, RUN, watch=watch)
    many, found = told(folder), load_file(folder / "gradients.safetensors")
    assert many["loss"] == pytest.approx(loss, abs=1e-5)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 1e-5, name  # there is something to compare
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=name)
    assert many["shown"] == [pytest.approx(each, rel=1e-3) for each in watch.shown]
    assert len(watch.shown) > 1
    assert many["losses"] == pytest.approx(losses, abs=1e-5)
    for one, other in zip(watch.reports, many["reports"], strict=True):
        assert other[:4] == pytest.approx(one[:4], rel=1e-5, abs=1e-5)
    weights = load_file(folder / "weights.safetensors")
    assert weights.keys() == task.module.state_dict().keys()
    assert all(weights[n].shape == w.shape for n, w in task.module.state_dict().items())
    task.attachment.remove()
    torch.testing.assert_close(torch.tensor(many["out"]), task.predict(torch.ones(2, 6)))


@pytest.mark.parametrize("case", TWO)
def test_two_processes_do_what_one_does(on_two, tmp_path, case):
    check_case(on_two[1] / case, TWO[case][1], tmp_path)


def test_a_team_that_reads_images_together_does_what_one_does(on_two, tmp_path):
    check_case(on_two[1] / "ulysses", {}, tmp_path, TinyFlux)


@pytest.mark.parametrize("case", FOUR)
def test_four_processes_do_what_one_does(on_four, tmp_path, case):
    check_case(on_four / case, FOUR[case][1], tmp_path)


@pytest.mark.parametrize("by", ["ctrl-c", "sigterm"])
def test_a_signal_to_one_process_stops_all_after_the_same_step(on_two, tmp_path, by):
    folder = on_two[1] / by
    assert [told(folder, rank)["said"] for rank in (0, 1)] == ["KeyboardInterrupt: "] * 2
    copy_checkpoint(newest(folder / "run"), tmp_path)
    assert describe(tmp_path).step == 3
    (tmp_path / "whole").mkdir()
    whole = train(Tiny(), CONFIG, tmp_path / "whole", RUN)
    assert train(Tiny(), CONFIG, tmp_path, RUN, resume=True) == pytest.approx(whole, abs=1e-5)


def test_a_loss_that_is_no_number_on_one_process_stops_all(on_two):
    folder = on_two[1] / "nan"
    sentences = [told(folder, rank)["said"] for rank in (0, 1)]
    assert sentences[0] == sentences[1]
    assert "The loss became nan at step 3; the last good checkpoint, of step 2" in sentences[0]
    assert describe(folder / "run").step == 2


def test_when_one_process_is_killed_the_run_ends_with_a_sentence(on_two):
    process, out, at = on_two
    assert process.returncode != 0
    assert "error: A process of this run has ended or cannot be reached" in process.stderr
    assert 2 <= describe(out / "killed" / "run").step < at


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Losses of a run on one process, and the size of what it exports."""
    task = Tiny()
    losses = train(task, replace(CONFIG, steps=LONG, ema=0.9), tmp_path_factory.mktemp("one"), RUN)
    return losses, size(task.module)


def test_a_killed_run_goes_on_with_fewer_processes(on_two, undisturbed, tmp_path):
    copy_checkpoint(newest(on_two[1] / "killed" / "run"), tmp_path)
    task = Tiny()
    losses = train(task, replace(CONFIG, steps=LONG, ema=0.9), tmp_path, RUN, resume=True)
    assert losses == pytest.approx(undisturbed[0], abs=1e-5)
    assert size(task.module) == pytest.approx(undisturbed[1], rel=1e-4)


def test_a_killed_run_goes_on_with_more_processes(on_four, undisturbed):
    resumed = told(on_four / "resumed")
    assert resumed["losses"] == pytest.approx(undisturbed[0], abs=1e-5)
    assert resumed["exported"] == pytest.approx(undisturbed[1], rel=1e-4)


def test_quantised_weights_are_not_cut_up():
    model = Model()
    assert can_shard(model)
    model.out.weight = torch.nn.Parameter(torch.zeros(6, 6, dtype=torch.int8), requires_grad=False)
    assert not can_shard(model)


def test_an_arrangement_that_is_no_whole_is_refused_with_its_numbers():
    with pytest.raises(HywuError, match=r"replicate 3 x shard 2 x sequence 1 cannot be 8 processes"):
        ParallelConfig(replicate=3, shard=2).over(8)
    with pytest.raises(HywuError, match="sequence 3 cannot be 8"):
        ParallelConfig(sequence=3).over(8)
    with pytest.raises(HywuError, match="replicate is 0"):
        ParallelConfig(replicate=0)
    with pytest.raises(HywuError, match="set sequence to 2"):
        ParallelConfig(ulysses=True)
    assert ParallelConfig(replicate=2, sequence=2).over(8).shard == 2


def test_rows_that_cannot_be_dealt_out_evenly_are_refused():
    with pytest.raises(HywuError, match="9 rows cannot be dealt out evenly to 4 processes"):
        Share(0, 4).rows(9)


@pytest.mark.parametrize(("world", "team"), [(1, 1), (2, 2), (4, 2), (6, 3), (6, 6)])
def test_every_row_is_computed_once_and_by_the_adapter_of_its_condition(world, team):
    conditions, repeats = 6, 4
    rows, served = [], []
    for rank in range(world):
        share = Share(rank, world, team)
        own = range(conditions)[share.conditions.rows(conditions)]
        adapters, mine = share.pairs(len(own), repeats)
        each = len(mine) // len(adapters)
        rows += [own[row] for row in mine]
        served += [own[adapter] for adapter in adapters for _ in range(each)]
        assert len(mine) == len(range(conditions * repeats)[share.rows(conditions * repeats)])
    assert rows == served == [row // repeats for row in range(conditions * repeats)]
