import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core.errors import HywuError
from hywu_core.lora import Adapter
from hywu_core.lora.algebra import (
    average,
    clip_norm,
    combine,
    interpolate,
    join,
    norms,
    total_norm,
    truncate_rank,
)


def adapter_of(batch=3, rank=4, scale=0.5, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)

    def pair(d_in, d_out, *experts):
        A = torch.randn(batch, *experts, rank, d_in, generator=g)
        return A.to(dtype), torch.randn(batch, *experts, d_out, rank, generator=g).to(dtype)

    return Adapter({"wide": pair(12, 7), "tall": pair(5, 16), "experts": pair(6, 6, 2)}, scale)


def update(adapter, name):
    A, B = adapter[name]
    return adapter.scale * B.float() @ A.float()


def same_update(first, second):
    for name in first:
        torch.testing.assert_close(update(first, name), update(second, name))


def test_norms_are_those_of_the_dense_updates():
    adapter = adapter_of(scale=-0.7)
    dense = {name: update(adapter, name).flatten(1).norm(dim=1) for name in adapter}
    for name, norm in norms(adapter).items():
        torch.testing.assert_close(norm, dense[name])
    torch.testing.assert_close(total_norm(adapter), torch.stack(list(dense.values())).norm(dim=0))


def test_the_norm_of_nothing_is_zero_and_clipping_leaves_it():
    zero = adapter_of().map(torch.zeros_like)
    assert torch.equal(total_norm(zero), torch.zeros(3))
    clipped, report = clip_norm(zero, per_target=1.0, total=1.0)
    assert report.n_clipped == 0
    assert all(torch.isfinite(t).all() for pair in clipped.values() for t in pair)


def test_clipping_bounds_each_target_and_then_the_whole():
    adapter = adapter_of()
    per_target = float(norms(adapter)["wide"].median())
    clipped, report = clip_norm(adapter, per_target=per_target)
    before, after = norms(adapter), norms(clipped)
    for name in adapter:
        torch.testing.assert_close(after[name], before[name].clamp(max=per_target))
    assert report.n_clipped == sum(int((norm > per_target).sum()) for norm in before.values())

    both, report = clip_norm(adapter, per_target=per_target, total=2.0)
    torch.testing.assert_close(total_norm(both), torch.full((3,), 2.0))
    torch.testing.assert_close(report.total_after, torch.full((3,), 2.0))
    torch.testing.assert_close(report.total_before, total_norm(adapter))
    assert "clipped 9 of 9" in report.describe()


def test_clipping_keeps_directions_and_what_is_within_bounds():
    adapter = adapter_of()
    clipped, report = clip_norm(adapter, total=1.0)
    for name in adapter:
        factor = report.factors[name].view(-1, *[1] * (adapter[name][1].dim() - 1))
        torch.testing.assert_close(update(clipped, name), update(adapter, name) * factor)
    untouched, report = clip_norm(adapter, per_target=1e6, total=1e6)
    assert report.n_clipped == 0
    assert all(untouched[name][1] is adapter[name][1] for name in adapter)


@settings(deadline=None, max_examples=150)
@given(
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    seed=st.integers(0, 2**16),
    rank=st.integers(1, 4),
    share=st.floats(1e-6, 1.5),
    whole=st.floats(0.01, 2),
    alike=st.booleans(),
)
def test_bounds_hold_for_what_comes_out_whatever_it_is_rounded_to(dtype, seed, rank, share, whole, alike):
    adapter = adapter_of(rank=rank, seed=seed, dtype=dtype)
    if alike:  # then all of it is rounded the same way
        adapter = adapter.map(lambda t: torch.full_like(t, float(t.flatten()[0])))
    before = norms(adapter)
    per_target = share * float(before["wide"].max())
    bounded = torch.stack([norm.clamp(max=per_target) for norm in before.values()]).norm(dim=0)
    total = whole * float(bounded.max())
    clipped, report = clip_norm(adapter, per_target, total)
    after = total_norm(clipped)
    assert all((norm <= per_target).all() for norm in norms(clipped).values())
    assert (after <= total).all()
    torch.testing.assert_close(report.total_after, after)
    if share > 0.01:  # below, float16 has few numbers left
        assert (after >= 0.97 * bounded.clamp(max=total)).all()


def test_gradients_pass_through_clipping():
    adapter = adapter_of().map(lambda t: t.clone().requires_grad_())
    clipped, report = clip_norm(adapter, total=1.0)
    clipped["wide"][1].sum().backward()
    factor = report.factors["wide"]
    torch.testing.assert_close(adapter["wide"][1].grad, factor.view(3, 1, 1).expand(3, 7, 4))


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_bounds_must_be_positive(limit):
    with pytest.raises(HywuError, match="positive"):
        clip_norm(adapter_of(), total=limit)


def test_sums_are_exact_and_their_ranks_add_up():
    first, second = adapter_of(seed=1), adapter_of(seed=2, rank=2, scale=3.0)
    total = combine([first, second], [2.0, -0.5])
    assert total.rank == 6
    for name in first:
        expected = 2.0 * update(first, name) - 0.5 * update(second, name)
        torch.testing.assert_close(update(total, name), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_in_half_precision_are_rounded_once_and_do_not_overflow(dtype):
    first, second = adapter_of(seed=1, dtype=dtype), adapter_of(seed=2, dtype=dtype)
    halfway = interpolate(first, second, 0.5)  # factors alike: nothing to round
    for name in first:
        exact = (update(first, name).double() + update(second, name).double()) / 2
        assert (update(halfway, name) - exact).norm() <= 1e-6 * exact.norm()
    mean = average(first)
    for name in first:
        torch.testing.assert_close(update(mean, name)[0], update(first, name).mean(dim=0))
    step = torch.finfo(dtype).eps
    for name in first:
        exact = 0.7 * update(first, name) + 0.3 * update(second, name)
        total = combine([first, second], [0.7, 0.3])
        assert total.dtype == dtype
        assert (update(total, name) - exact).norm() <= step * exact.norm()
    many = combine([first, second], [1e5, 1e5])
    assert all(bool(torch.isfinite(t).all()) for pair in many.values() for t in pair)
    joined = join([first, second.scaled(1e6)])
    assert all(bool(torch.isfinite(t).all()) for pair in joined.values() for t in pair)
    torch.testing.assert_close(update(joined, "wide")[3:], 1e6 * update(second, "wide"), rtol=1e-4, atol=1)


def test_interpolation_ends_at_its_ends():
    first, second = adapter_of(seed=1), adapter_of(seed=2)
    same_update(interpolate(first, second, 0.0), first)
    same_update(interpolate(first, second, 1.0), second)
    halfway = interpolate(first, second, 0.5, rank=8)  # no truncation: 4 + 4
    torch.testing.assert_close(update(halfway, "tall"), (update(first, "tall") + update(second, "tall")) / 2)


def test_the_average_is_the_mean_of_updates_not_of_factors():
    adapter = adapter_of(batch=5, rank=2)
    mean = average(adapter)
    assert (mean.batch, mean.rank) == (1, 10)
    for name in adapter:
        torch.testing.assert_close(update(mean, name)[0], update(adapter, name).mean(dim=0))
    short = average(adapter, rank=3)
    same_update(short, truncate_rank(mean, 3))


def test_truncation_is_the_best_approximation_there_is():
    adapter = adapter_of()
    short = truncate_rank(adapter, 2)
    assert short.rank == 2
    for name in adapter:
        dense = update(adapter, name)
        tail = torch.linalg.svdvals(dense)[..., 2:].square().sum(-1).sqrt()
        error = (dense - update(short, name)).flatten(-2).norm(dim=-1)
        torch.testing.assert_close(error, tail, rtol=1e-4, atol=1e-5)


def test_truncation_above_the_rank_pads_and_below_it_loses_nothing_that_is_low_rank():
    adapter = adapter_of(rank=2)
    same_update(truncate_rank(adapter, 7), adapter)
    assert truncate_rank(adapter, 7).rank == 7
    twice = combine([adapter, adapter], [0.25, 0.75])  # rank 4 written, 2 real
    same_update(truncate_rank(twice, 2), adapter)


def test_more_ranks_than_channels_is_no_problem():
    adapter = adapter_of(rank=40)
    short = truncate_rank(adapter, 20)
    assert short.rank == 20
    same_update(short, adapter)


def test_half_precision_comes_back_in_half_precision():
    adapter = adapter_of(dtype=torch.bfloat16)
    assert truncate_rank(adapter, 2).dtype == torch.bfloat16
    assert clip_norm(adapter, total=0.1)[0].dtype == torch.bfloat16
    assert norms(adapter)["wide"].dtype == torch.float32


def test_adapters_that_do_not_add_up_are_refused():
    with pytest.raises(HywuError, match="Batches of 2 and 3 LoRAs"):
        combine([adapter_of(), adapter_of(batch=2)], [1, 1])
    with pytest.raises(HywuError, match="2 adapters and 1 weights"):
        combine([adapter_of(), adapter_of()], [1])
    with pytest.raises(HywuError, match="rank to truncate to is 0"):
        truncate_rank(adapter_of(), 0)
    other = Adapter({"wide": adapter_of()["tall"]})
    with pytest.raises(HywuError, match="same model"):
        combine([adapter_of(), other], [1, 1])
