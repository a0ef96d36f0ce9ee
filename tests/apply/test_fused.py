"""The fused side path equals the sum of its parts, row by row, in the rows that its adapter serves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hywu_core.apply.fused import Convolution, Update, add_updates
from hywu_core.apply.packed import PackedAdapter, Part
from hywu_core.apply.rows import plan_spans
from hywu_core.errors import HywuError

D_IN = 6
CPU = torch.device("cpu")


def parts(batch: int, sizes: list[tuple[int, int]], gap: int, d_in: int = D_IN) -> list[Part]:
    """One random part for each (rank, rows), with `gap` rows of nobody's between them."""
    made, start = [], gap
    for rank, rows in sizes:
        A, B = (torch.randn(batch, *s, dtype=torch.float64) for s in ((rank, d_in), (rows, rank)))
        made.append(Part(A, B, 0.5, start, whole=len(sizes) == 1 and not gap))
        start += rows + gap
    return made


def packed(fused: list[Part], dtype: torch.dtype = torch.float64) -> PackedAdapter:
    return PackedAdapter({"linear": fused}, dtype)


def add(y, x, fused, spans, rows, dtype=torch.float64, convolution=None):
    layer = packed(fused, dtype).layers(CPU)["linear"]
    return add_updates(y, x, [Update(*layer, spans)], rows, convolution)


@settings(deadline=None, max_examples=80)
@given(
    batch=st.integers(1, 3),
    single=st.booleans(),
    chunks=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    twice=st.booleans(),
    branches=st.sets(st.booleans(), min_size=1),
    positions=st.lists(st.integers(1, 3), max_size=2),
    tiles=st.integers(1, 3),
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3),
    gap=st.integers(0, 2),
)
def test_every_row_gets_its_adapter_in_the_rows_of_every_part(
    batch, single, chunks, twice, branches, positions, tiles, sizes, gap
):
    torch.manual_seed(0)
    twice = twice and not positions  # a second timestep is stacked on a modulation, which has no positions
    fused = parts(1 if single else batch, sizes, gap)
    rows = tiles * len(chunks) * batch
    d_out = fused[-1].first + fused[-1].B.shape[1] + gap
    x = torch.randn((1 + twice) * rows, *positions, D_IN, dtype=torch.float64)
    y = torch.randn((1 + twice) * rows, *positions, d_out, dtype=torch.float64)
    expected = y.clone()
    for row in range(len(x)):
        chunk = chunks[row // batch % len(chunks)]
        if (chunk == 0) not in branches:
            continue
        for part in fused:
            outputs = slice(part.first, part.first + part.B.shape[1])
            one = 0 if single else row % batch
            expected[row, ..., outputs] += 0.5 * x[row] @ part.A[one].T @ part.B[one].T
    spans = plan_spans(len(fused[0].A), branches, chunks, rows, batch)
    torch.testing.assert_close(add(y, x, fused, spans, rows), expected)
    if tiles == 1:
        assert plan_spans(len(fused[0].A), branches, chunks, rows) == spans


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "settings", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": "same"}], ids=str
)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2), (3,), (2, 1, 2)], ids=str)
def test_a_convolution_equals_one_with_the_updated_weight(batch, settings, kernel):
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel) - 1]
    layer = kind(3, 5, kernel, bias=False, dtype=torch.float64, **settings).requires_grad_(False)
    fused = parts(batch, [(2, 5)], 0, d_in=layer.weight[0].numel())
    x = torch.randn(2, 3, *(7,) * len(kernel), dtype=torch.float64)
    expected = []
    for row in range(2):
        one = row % batch
        updated = kind(3, 5, kernel, bias=False, dtype=torch.float64, **settings).requires_grad_(False)
        updated.weight += layer.weight - updated.weight
        updated.weight += (0.5 * fused[0].B[one] @ fused[0].A[one]).view(layer.weight.shape)
        expected.append(updated(x[row : row + 1]))
    how = Convolution(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    spans = plan_spans(batch, {True, False}, (0,), 2)
    torch.testing.assert_close(add(layer(x), x, fused, spans, 2, convolution=how), torch.cat(expected))


def test_one_adapter_for_everything_serves_any_leading_axis():
    fused = parts(1, [(2, 3)], 0)
    x = torch.randn(5, 4, D_IN, dtype=torch.float64)
    expected = 0.5 * x @ fused[0].A[0].T @ fused[0].B[0].T
    y = torch.zeros(5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(add(y, x, fused, None, 3), expected)


def test_an_output_that_is_not_contiguous_is_not_written_through_a_copy():
    fused = parts(1, [(2, 4)], 0)
    x = torch.randn(2, 3, D_IN, dtype=torch.float64)
    y = torch.zeros(2, 4, 3, dtype=torch.float64).transpose(1, 2)
    torch.testing.assert_close(add(y, x, fused, None, 2), add(y.contiguous(), x, fused, None, 2))


def test_the_sum_has_the_dtype_of_the_output():
    fused = parts(2, [(2, 4)], 0)
    x, y = torch.randn(2, 3, D_IN, dtype=torch.bfloat16), torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    spans = plan_spans(2, {True}, (0,), 2)
    assert add(y, x, fused, spans, 2, torch.float32).dtype == torch.bfloat16


def test_a_zero_update_changes_no_bit():
    fused = [Part(p.A, torch.zeros_like(p.B), 1.0, p.first, p.whole) for p in parts(2, [(2, 3)], 1)]
    y = torch.randn(4, 5, 5)
    x = torch.randn(4, 5, D_IN)
    assert torch.equal(add(y.clone(), x, fused, ((0, 2), (2, 4)), 4, torch.float32), y)


@pytest.mark.parametrize("length", [1, 3, 12])
def test_rows_that_nobody_can_tell_apart_are_a_sentence_with_both_numbers(length):
    x, y = torch.zeros(length, D_IN, dtype=torch.float64), torch.zeros(length, 3, dtype=torch.float64)
    with pytest.raises(HywuError, match=rf"sees {length} rows .* has 4"):
        add(y, x, parts(2, [(2, 3)], 0), ((0, 2), (2, 4)), 4)


def test_an_image_cut_into_two_runs_of_positions_is_not_taken_for_two_timesteps():
    """HyperTile makes 2 M rows of M, the two of an image next to each other."""
    x, y = torch.zeros(8, 3, D_IN, dtype=torch.float64), torch.zeros(8, 3, 3, dtype=torch.float64)
    with pytest.raises(HywuError, match=r"sees 8 rows .* has 4"):
        add(y, x, parts(2, [(2, 3)], 0), ((0, 2), (2, 4)), 4)


@pytest.mark.parametrize(("rows", "images"), [(6, 2), (3, 3), (5, None)])
def test_rows_that_are_no_whole_number_of_calls_are_a_sentence(rows, images):
    with pytest.raises(HywuError, match=rf"{rows} rows for 2 conditions"):
        plan_spans(1, {True}, (0, 1), rows, images)


def test_loras_that_are_not_as_many_as_images_are_a_sentence_with_both_numbers():
    with pytest.raises(HywuError, match=r"2 LoRAs.*batch of 3"):
        plan_spans(2, {True, False}, (0, 1), 6)


def test_a_branch_that_a_call_does_not_have_costs_nothing():
    assert plan_spans(1, {False}, (0,), 3) == ()


def test_its_numbers_are_one_parameter_that_can_be_moved_and_copied():
    fused = packed(parts(2, [(2, 3), (1, 4)], 0))
    assert [name for name, _ in fused.named_parameters()] == ["storage"]
    before = fused.layers(CPU)["linear"]
    fused.storage.data = fused.storage.data.clone()  # as loading and offloading do
    for layer in (fused.layers(CPU)["linear"], fused.copy().layers(CPU)["linear"]):
        assert layer[0].data_ptr() != before[0].data_ptr()
        torch.testing.assert_close(layer[0], before[0])
        torch.testing.assert_close([up.B for up in layer[1]], [up.B for up in before[1]])


def test_gradients_pass_through_what_was_made_in_inference_mode():
    """ComfyUI runs nodes in it, and training nodes out of it."""
    with torch.inference_mode():
        made = packed(parts(1, [(2, 3)], 0))
        made.layers(CPU)
    x = torch.randn(2, D_IN, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, D_IN, dtype=torch.float64)
    add_updates(x @ weight.T, x, [Update(*made.layers(CPU)["linear"], None)], 2).sum().backward()
    A, ups = made.layers(CPU)["linear"]
    torch.testing.assert_close(x.grad, (weight + (A @ ups[0].B).T).sum(0).expand(2, -1))


def test_large_values_are_finite_even_if_their_sum_is_not():
    fused = [Part(torch.ones(1, 2, 3), torch.full((1, 4, 2), 3e38))]
    assert packed(fused, torch.float32).is_finite()


def test_values_that_overflow_are_noticed():
    fused = [Part(torch.ones(1, 2, 3), torch.full((1, 4, 2), 6e4), 2.0)]
    assert packed(fused, torch.float32).is_finite()
    assert not packed(fused, torch.float16).is_finite()
