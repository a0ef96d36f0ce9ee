import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core.apply import low_rank_update
from hywu_core.errors import HywuError


@settings(deadline=None, max_examples=100)
@given(
    adapters=st.integers(1, 4),
    per_adapter=st.integers(1, 3),
    positions=st.lists(st.integers(1, 4), max_size=2),
    scale=st.sampled_from([1.0, 0.5, -2.0]),
    inplace=st.booleans(),
)
def test_each_adapter_serves_its_consecutive_rows(adapters, per_adapter, positions, scale, inplace):
    rows = adapters * per_adapter
    x, y = torch.randn(rows, *positions, 6), torch.randn(rows, *positions, 5)
    A, B = torch.randn(adapters, 3, 6), torch.randn(adapters, 5, 3)
    expected = torch.stack(
        [y[m] + scale * x[m] @ A[m // per_adapter].T @ B[m // per_adapter].T for m in range(rows)]
    )
    torch.testing.assert_close(low_rank_update(y, x, A, B, scale, inplace), expected, rtol=1e-4, atol=1e-5)


def test_one_adapter_serves_every_row_and_a_single_vector():
    A, B = torch.randn(1, 3, 6), torch.randn(1, 5, 3)
    x, y = torch.randn(7, 6), torch.randn(7, 5)
    torch.testing.assert_close(low_rank_update(y, x, A, B), y + x @ A[0].T @ B[0].T)
    torch.testing.assert_close(low_rank_update(y[0], x[0], A, B), y[0] + x[0] @ A[0].T @ B[0].T)


@pytest.mark.parametrize(("adapters", "shape"), [(2, (3, 6)), (3, (4, 2, 6)), (4, (2, 2, 6)), (2, (6,))])
def test_rows_that_cannot_be_shared_out_are_refused_with_both_numbers(shape, adapters):
    rows = shape[0] if len(shape) > 1 else 1
    A, B = torch.randn(adapters, 2, 6), torch.randn(adapters, 5, 2)
    with pytest.raises(HywuError, match=f"{adapters} adapters.*{rows} rows"):
        low_rank_update(torch.randn(*shape[:-1], 5), torch.randn(shape), A, B)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapters", [1, 2])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_zero_b_gives_the_output_back_bit_for_bit(dtype, adapters, inplace):
    x, y = torch.randn(4, 3, 6).to(dtype) * 50, torch.randn(4, 3, 5).to(dtype) * 50
    before = y.clone()
    out = low_rank_update(y, x, torch.randn(adapters, 2, 6), torch.zeros(adapters, 5, 2), 0.3, inplace)
    assert out.dtype == dtype
    assert torch.equal(out, before)


@pytest.mark.parametrize("adapters", [1, 2])
def test_y_is_only_touched_when_allowed(adapters):
    x, y = torch.randn(4, 6), torch.randn(4, 5)
    A, B = torch.randn(adapters, 2, 6), torch.randn(adapters, 5, 2)
    before = y.clone()
    out = low_rank_update(y, x, A, B)
    assert torch.equal(y, before)
    assert low_rank_update(y, x, A, B, inplace=True).data_ptr() == y.data_ptr()
    torch.testing.assert_close(y, out)


@pytest.mark.parametrize("adapters", [1, 2])
def test_gradients_are_right(adapters):
    tensors = [(4, 3, 5), (4, 3, 6), (adapters, 2, 6), (adapters, 5, 2)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in tensors]
    assert torch.autograd.gradcheck(lambda *t: low_rank_update(*t, 0.7), inputs)


def test_the_adapter_follows_the_output_dtype():
    x, y = torch.randn(2, 6).bfloat16(), torch.randn(2, 5).bfloat16()
    A, B = torch.randn(1, 2, 6), torch.randn(1, 5, 2)
    expected = low_rank_update(y, x, A.bfloat16(), B.bfloat16())
    assert torch.equal(low_rank_update(y, x, A, B), expected)
