"""The instruments: memory counted exactly, ratios within a round, work as torch itself counts it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hywu_core.bench.sizes import SIZES, work
from hywu_core.conditions import Condition
from hywu_core.generator import ParameterGenerator
from hywu_core.generator.release_config import read_config
from hywu_core.measure import (
    Matmul,
    Rounds,
    Spread,
    in_turns,
    matmul_ceiling,
    peak_extra_bytes,
    synchronize,
    threads,
)
from hywu_core.report import megabytes, table

MIB = 2**20


def test_the_peak_counts_what_is_there_at_once_and_forgets_what_is_gone():
    def run():
        first = torch.empty(4 * MIB, dtype=torch.uint8)
        del first
        second, third = torch.empty(3 * MIB, dtype=torch.uint8), torch.empty(2 * MIB, dtype=torch.uint8)
        del second
        return third

    before = torch.empty(50 * MIB, dtype=torch.uint8)
    assert peak_extra_bytes(run) == pytest.approx(5 * MIB, abs=4096)
    assert peak_extra_bytes(lambda: before.add_(1)) < 4096
    assert peak_extra_bytes(lambda: before + 1) == pytest.approx(50 * MIB, abs=4096)


@pytest.mark.parametrize("count", [None, 1, 3])
def test_afterwards_there_are_as_many_threads_as_before(count):
    before = torch.get_num_threads()
    with threads(count):
        assert torch.get_num_threads() == (count or before)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("device", "waited"), [("cpu", []), ("cuda:1", ["cuda:1"]), ("mps", ["mps"])])
def test_of_several_gpus_the_one_that_computes_is_waited_for(device, waited, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda which=None: seen.append(which))
    synchronize(device)
    assert seen == waited


def test_contenders_take_turns_and_warm_up_is_not_counted():
    ticks = iter(range(1000))
    order = []
    rounds = in_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        rounds=3,
        warm_up=2,
        clock=lambda: float(next(ticks)),
    )
    assert order == ["a", "b"] * 5
    assert rounds.spread("a") == Spread(1.0, 1.0, 1.0, 3)


def test_a_ratio_is_taken_within_its_round():
    rounds = Rounds({"ours": (1.0, 10.0, 2.0), "theirs": (2.0, 20.0, 2.0)})
    assert rounds.ratio("ours", "theirs") == Spread(0.5, 0.5, 1.0, 3)
    assert rounds.ratio("ours", "theirs").scaled(2).maximum == 2.0


def test_a_ceiling_is_a_rate_of_these_products():
    sizes = [Matmul(8, 16, 32), Matmul(16, 16, 16)]
    rates = matmul_ceiling(sizes, "cpu", torch.float32, rounds=1)
    assert list(rates) == sizes
    assert all(rate > 0 for rate in rates.values())
    assert sizes[0].flop == 2 * 8 * 16 * 32


@pytest.mark.parametrize(("batch", "starts"), [(1, 1), (3, 1), (3, 0)])
def test_work_is_what_torch_counts(batch, starts):
    size = SIZES["small"]
    with torch.device("meta"):
        generator = ParameterGenerator(*read_config(size.config)).eval()
        condition = Condition(torch.randn(batch, size.n_condition, size.config["input_dim"]))
    generator.keep_start_bytes = 2**40 if starts == 0 else 0
    with torch.no_grad():
        generator(condition)
        with FlopCounterMode(display=False) as counted:
            generator(condition)
    assert counted.get_total_flops() == pytest.approx(
        work(generator, batch, size.n_condition, starts), rel=2e-3
    )


def test_the_mid_size_is_the_work_it_is_known_for():
    size = SIZES["mid"]
    with torch.device("meta"):
        generator = ParameterGenerator(*read_config(size.config))
    assert work(generator, 1, size.n_condition, 1) == pytest.approx(0.34e12, rel=0.01)
    assert sum(generator.bands[0].n_tokens) == 64


def test_the_released_size_is_the_published_one():
    size = SIZES["release"]
    with torch.device("meta"):
        generator = ParameterGenerator(*read_config(size.config))
    assert generator.n_parameters == pytest.approx(8.1e9, rel=1e-3)
    assert work(generator, 1, size.n_condition, 1) == pytest.approx(3.02e15, rel=0.01)


def test_a_table_aligns_words_left_and_numbers_right():
    lines = table(["", "MB"], [["ours", "1"], ["official", "23"]]).splitlines()
    assert lines == ["          MB", "--------  --", "ours       1", "official  23"]
    assert (megabytes(None), megabytes(1_450_000_000), megabytes(35_400_000)) == (
        "unknown",
        "1.45 GB",
        "35.4 MB",
    )
