import math

import pytest
import torch

from hywu_core.generator.positions import RotaryTables, rotate, rotate_, rotation_of

CPU = torch.device("cpu")


def test_pairs_turn_by_index_times_frequency():
    rotation = rotation_of([torch.tensor([0, 1, 5])], head_dim=4, theta=100.0)
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(1, 3, 1, 4)
    for row, index in zip(rotate(x, rotation)[0, :, 0], (0, 1, 5), strict=True):
        fast, slow = index, index / 10  # theta ** (-2i / 4) for i = 0, 1
        wanted = [math.cos(fast), math.sin(fast), -math.sin(slow), math.cos(slow)]
        torch.testing.assert_close(row, torch.tensor(wanted))


def test_scores_depend_on_relative_positions_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 8)

    def score(at: int, to: int) -> float:
        indices = [torch.tensor([at, to]), torch.tensor([2 * at, 2 * to])]
        turned = rotate(torch.stack([q, k])[None, :, None], rotation_of(indices, 8, 10000.0))
        return float(turned[0, 0, 0] @ turned[0, 1, 0])

    assert math.isclose(score(3, 1), score(10, 8), abs_tol=1e-5)
    assert not math.isclose(score(3, 1), score(3, 2), abs_tol=1e-2)


def test_a_band_has_a_grid_for_each_attention_and_a_diagonal_for_the_condition():
    tables = RotaryTables(head_dim=8, theta=10000.0)
    rotations = tables.band((2, 3, 4), n_condition=5, device=CPU)
    layers, tokens, ranks = torch.arange(2), torch.arange(3), torch.arange(4)

    def assert_at(rotation, *indices):
        torch.testing.assert_close(tuple(rotation), tuple(rotation_of(indices, 8, 10000.0)))

    assert_at(rotations.layer, layers)
    assert_at(rotations.token, tokens.repeat_interleave(4), ranks.repeat(3))
    whole = rotations.query.part(slice(None), slice(None))
    assert_at(whole, layers.repeat_interleave(12), torch.arange(12).repeat(2))
    assert_at(rotations.query.part(slice(1, 2), slice(5, 9)), torch.ones(4), torch.arange(5, 9))
    assert_at(rotations.key, torch.arange(4, 9), torch.arange(4, 9))


def test_tables_are_computed_once_and_serve_training_after_inference():
    tables = RotaryTables(head_dim=8, theta=10000.0)
    with torch.inference_mode():
        first = tables.band((2, 3, 4), 5, CPU)
    assert tables.band((2, 3, 4), 5, CPU).query.place is first.query.place
    x = torch.randn(2, 12, 3, 8, requires_grad=True)
    rotate(x, first.token).sum().backward()
    assert x.grad is not None


def test_tables_do_not_grow_without_end():
    tables = RotaryTables(head_dim=8, theta=10000.0)
    for length in range(1, 500):
        tables.band((2, 3, 4), length, CPU)
    assert len(tables._tables) < 100


def test_half_precision_is_rotated_in_float32():
    rotation = rotation_of([torch.arange(4000, 4003)], 8, 10000.0)
    x = torch.randn(2, 3, 4, 8)
    turned = rotate(x.bfloat16(), rotation)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.float(), rotate(x, rotation), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("complex_numbers", [True, False])
def test_turning_in_place_is_the_same_turn(dtype, complex_numbers, monkeypatch):
    if not complex_numbers:
        monkeypatch.setattr("hywu_core.generator.positions._COMPLEX_DEVICES", ())
    rotation = rotation_of([torch.arange(90, 97)], 8, 10000.0)
    x = torch.randn(2, 7, 6, 8).to(dtype)
    wanted, untouched = rotate(x[:, :, 1:4], rotation), x[:, :, 4:].clone()
    turned = rotate_(x[:, :, 1:4], rotation)  # some heads of a joint projection
    assert turned.data_ptr() == x[:, :, 1:4].data_ptr()
    torch.testing.assert_close(x[:, :, 1:4], wanted, atol=1e-6 if dtype == torch.float32 else 0.03, rtol=0)
    torch.testing.assert_close(x[:, :, 4:], untouched, atol=0, rtol=0)
