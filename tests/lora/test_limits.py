"""Bounds on an update: what comes out keeps them, what was within stays itself, and the report is true."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core.errors import HywuError
from hywu_core.lora import Adapter
from hywu_core.lora.algebra import norms, total_norm
from hywu_core.lora.limits import Limits

bounds = st.one_of(st.none(), st.floats(0.01, 100))


def adapter_of(batch: int = 2, rank: int = 4, scale: float = 2.0, seed: int = 0) -> Adapter:
    random = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=random)

    weights = {
        "a.0": (matrix(rank, 6), matrix(5, rank)),
        "a.1": (matrix(rank, 6) * 3, matrix(5, rank)),
        "experts": (matrix(3, rank, 4), matrix(3, 7, rank)),
    }
    rows = [{"condition_sha256": f"{i:064}", "prompt": f"p{i}"} for i in range(batch)]
    return Adapter(weights, scale, {"base": "x"}, rows)


def largest_rank(adapter: Adapter) -> int:
    updates = [B.double() @ A.double() for A, B in adapter.values()]
    return max(int(torch.linalg.matrix_rank(update, rtol=1e-5).max()) for update in updates)


@settings(max_examples=40, deadline=None)
@given(
    total=bounds,
    per_target=bounds,
    rank=st.one_of(st.none(), st.integers(1, 6)),
    batch=st.integers(1, 3),
    scale=st.sampled_from([0.25, 2.0, -3.0]),
)
def test_what_comes_out_keeps_every_bound(total, per_target, rank, batch, scale):
    adapter = adapter_of(batch, scale=scale)
    bounded, report = Limits(total, per_target, rank).apply(adapter)
    slack = 1 + 1e-4
    if total is not None:
        assert (total_norm(bounded) <= total * slack).all()
    if per_target is not None:
        assert all((norm <= per_target * slack).all() for norm in norms(bounded).values())
    if rank is not None:
        assert largest_rank(bounded) <= rank
        assert bounded.rank == min(rank, adapter.rank)
    assert bool(report) == (bounded is not adapter)
    assert bounded.rows == adapter.rows
    assert bounded.provenance["base"] == "x"
    assert ("limits" in bounded.provenance) == bool(report)


def test_no_bound_and_a_wide_one_change_nothing():
    adapter = adapter_of()
    for limits in (Limits(), Limits(1e6, 1e6, 64), Limits.of_widgets(0.0, 0.0, 0)):
        assert limits.apply(adapter) == (adapter, ())


def test_the_direction_of_an_update_stays():
    adapter = adapter_of()
    bounded, _ = Limits(max_norm=1.0).apply(adapter)
    for name, (A, B) in adapter.items():
        before, after = B @ A, bounded[name][1] @ bounded[name][0]
        ratio = float(after.norm() / before.norm())
        assert ratio < 1
        torch.testing.assert_close(after[0] / after[0].norm(), before[0] / before[0].norm())


def test_each_lora_of_a_batch_is_bounded_by_itself():
    small, large = adapter_of(1, scale=1.0), adapter_of(1, scale=100.0)
    together = Adapter.stack([small, large])
    limit = float(total_norm(small)) * 1.5
    bounded, report = Limits(max_norm=limit).apply(together)
    assert bounded["a.0"][1][:1].equal(together["a.0"][1][:1])
    torch.testing.assert_close(total_norm(bounded), torch.tensor([float(total_norm(small)), limit]))
    assert len(report) == 1
    assert "of LoRA 1" in report[0]


def test_the_report_says_what_was_clipped_from_what_to_what():
    adapter = adapter_of(1)
    before = float(total_norm(adapter))
    bounded, report = Limits(max_norm=2.5, max_rank=2).apply(adapter)
    rank, norm = report
    kept = float(total_norm(Limits(max_rank=2).apply(adapter)[0]))
    assert rank == f"max_rank 2: rank 4 -> 2, which keeps {kept / before:.1%} of its norm"
    found = re.fullmatch(r"max_norm 2\.5: the norm (\S+) -> (\S+), 3 of 3 targets made smaller", norm)
    assert float(found[1]) == pytest.approx(kept, rel=1e-3)
    assert float(found[2]) == pytest.approx(float(total_norm(bounded)), rel=1e-3)
    assert bounded.provenance["limits"] == "max_norm 2.5, max_rank 2"


def test_only_the_targets_over_their_bound_are_changed():
    adapter = adapter_of(1)
    found = {name: float(norm) for name, norm in norms(adapter).items()}
    second = sorted(found.values())[1]
    bounded, (line,) = Limits(max_norm_per_target=second * 1.01).apply(adapter)
    assert "1 of 3 targets made smaller" in line
    largest = max(found, key=found.get)
    assert all(bounded[name][1] is adapter[name][1] for name in found if name != largest)


def test_a_long_batch_has_a_short_report():
    _, report = Limits(max_norm=0.1).apply(adapter_of(20))
    assert len(report) == 8
    assert report[-1] == "max_norm 0.1: 13 more of the 20 LoRAs"


def test_a_zero_update_can_be_bounded():
    zero = adapter_of().map(torch.zeros_like)
    bounded, report = Limits(1.0, 1.0, 2).apply(zero)
    assert bounded.rank == 2
    assert report == ("max_rank 2: rank 4 -> 2, which keeps 100.0% of each norm or more",)


@pytest.mark.parametrize("limits", [{"max_norm": -1.0}, {"max_norm_per_target": 0.0}, {"max_rank": 0}])
def test_a_bound_that_is_not_positive_is_refused(limits):
    (name,) = limits
    with pytest.raises(HywuError, match=f"{name} is .*must be positive"):
        Limits(**limits)
