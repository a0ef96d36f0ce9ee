"""The fused side path equals the sum of its parts, row by row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core.apply.fused import FusedPath, Part
from hywu_core.errors import HywuError

D_IN = 6


def parts(batch: int, sizes: list[tuple[int, int]], gap: int) -> list[Part]:
    """One random part for each (rank, rows), with `gap` rows of nobody's between them."""
    made, start = [], gap
    for rank, rows in sizes:
        A, B = (torch.randn(batch, *s, dtype=torch.float64) for s in ((rank, D_IN), (rows, rank)))
        made.append(Part(A, B, start))
        start += rows + gap
    return made


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    chunks=st.integers(1, 3),
    positions=st.lists(st.integers(1, 3), max_size=2),
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3),
    gap=st.integers(0, 2),
)
def test_every_row_gets_its_adapter_in_the_rows_of_every_part(batch, chunks, positions, sizes, gap):
    torch.manual_seed(0)
    fused = parts(batch, sizes, gap)
    d_out = fused[-1].start + fused[-1].B.shape[1] + gap
    x = torch.randn(chunks * batch, *positions, D_IN, dtype=torch.float64)
    y = torch.randn(chunks * batch, *positions, d_out, dtype=torch.float64)
    expected = y.clone()
    for row in range(len(x)):
        for part in fused:
            rows = slice(part.start, part.start + part.B.shape[1])
            expected[row, ..., rows] += x[row] @ part.A[row % batch].T @ part.B[row % batch].T
    torch.testing.assert_close(FusedPath(fused)(y, x), expected)


def test_one_adapter_serves_any_number_of_rows():
    fused = parts(1, [(2, 3)], 0)
    x = torch.randn(5, 4, D_IN, dtype=torch.float64)
    expected = x @ fused[0].A[0].T @ fused[0].B[0].T
    torch.testing.assert_close(FusedPath(fused)(torch.zeros(5, 4, 3, dtype=torch.float64), x), expected)


def test_an_output_that_is_not_contiguous_is_not_written_through_a_copy():
    fused = FusedPath(parts(1, [(2, 4)], 0))
    x = torch.randn(2, 3, D_IN, dtype=torch.float64)
    y = torch.zeros(2, 4, 3, dtype=torch.float64).transpose(1, 2)
    torch.testing.assert_close(fused(y, x), fused(y.contiguous(), x))


def test_a_zero_update_changes_no_bit():
    fused = [
        Part(part.A.float(), torch.zeros_like(part.B).float(), part.start) for part in parts(2, [(2, 3)], 1)
    ]
    y = torch.randn(4, 5, 5)
    assert torch.equal(FusedPath(fused)(y.clone(), torch.randn(4, 5, D_IN)), y)


def test_rows_that_cannot_be_shared_out_are_a_sentence_with_both_numbers():
    with pytest.raises(HywuError, match=r"2 LoRAs .* batch of 3 rows"):
        FusedPath(parts(2, [(2, 3)], 0))(torch.zeros(3, 3), torch.zeros(3, D_IN))


def test_its_tensors_are_parameters_of_one_leaf_module():
    fused = FusedPath(parts(2, [(2, 3), (1, 4)], 0))
    assert [name for name, _ in fused.named_parameters()] == ["A", "B0", "B1"]
    assert not list(fused.children())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
