from __future__ import annotations

import pytest
import torch

from hywu_core import Adapter
from hywu_core.errors import HywuError
from hywu_core.lora.inspection import inspect


def adapter_of(*names: str, batch: int = 1, seed: int = 0) -> Adapter:
    random = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=random)

    return Adapter({name: (matrix(2, 6), matrix(5, 2)) for name in names}, 0.5, {"base": "a small model"})


NAMES = ("double.0.attn", "double.0.mlp", "double.1.attn", "double.1.mlp", "single.0.proj", "out")


def test_one_adapter_is_told_by_its_size_its_norm_and_what_it_changes_most():
    found = inspect(adapter_of(*NAMES))
    text = "\n".join(found.lines)
    assert len(found.tables) == 1
    assert "adapter: 6 targets of rank 2, 132 numbers, for a small model" in text
    assert f"total norm {found.tables[0].total:.4g} (its square: double " in text
    assert found.tables[0].strongest(1)[0][0] in text


def test_two_adapters_come_with_their_difference():
    first, second = adapter_of(*NAMES, batch=3), adapter_of(*NAMES, seed=1)
    found = inspect(first, second, 2)
    assert [table.title for table in found.tables] == ["adapter 2 of 0 to 2", "other", "difference"]
    assert found.tables[2] == inspect(first.select(2), second).tables[2]
    assert any("cosine" in line for line in found.lines)


def test_a_single_one_goes_with_every_index_of_the_other():
    one, several = adapter_of(*NAMES), adapter_of(*NAMES, batch=3, seed=1)
    found = inspect(one, several, 2)
    assert [table.title for table in found.tables] == ["adapter", "other 2 of 0 to 2", "difference"]
    assert found.tables[2] == inspect(one, several.select(2)).tables[2]
    assert inspect(one, one, 2).tables[2].total == 0
    with pytest.raises(HywuError, match="only 1"):
        inspect(one, index=2)
    with pytest.raises(HywuError, match="only 3"):
        inspect(one, several, 3)


def test_of_two_batches_the_same_index_is_compared():
    adapter = adapter_of(*NAMES, batch=3)
    assert inspect(adapter, adapter, 1).tables[2].total == 0
    with pytest.raises(HywuError, match="only 2"):
        inspect(adapter, adapter.select(slice(0, 2)), 2)


def test_what_only_one_of_them_adapts_is_said():
    lines = inspect(adapter_of(*NAMES), adapter_of(*NAMES[:4])).lines
    assert any("2 targets are only in the adapter and 0 only in the other" in line for line in lines)


def test_a_zero_update_is_called_one():
    zero = adapter_of(*NAMES).map(torch.zeros_like)
    assert any(line == "total norm 0: it changes nothing" for line in inspect(zero).lines)
    inspect(zero, adapter_of(*NAMES))
    inspect(adapter_of(*NAMES), zero)


def test_gaps_are_counted():
    lines = inspect(adapter_of("blocks.0.a", "blocks.1.b")).lines
    assert any(line.startswith("2 modules of single layers") for line in lines)
