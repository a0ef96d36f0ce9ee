from __future__ import annotations

import json
from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hywu_core import Adapter, LoraSpec
from hywu_core.errors import HywuError
from hywu_core.lora.algebra import total_norm
from hywu_core.lora.norm_table import OUTSIDE, WHOLE_LAYER, NormTable, arrange, norm_table, place


def adapter_of(names: list[str], batch: int = 1, experts: int | None = None, scale: float = 0.5) -> Adapter:
    """Random updates of 6 -> 5 linears."""
    random = torch.Generator().manual_seed(len(names))
    axes = (batch,) if experts is None else (batch, experts)
    return Adapter(
        {
            name: (
                torch.randn(*axes, 2, 6, generator=random),
                torch.randn(*axes, 5, 2, generator=random),
            )
            for name in names
        },
        scale,
    )


def cell(table: NormTable, band: str, layer: int, module: str) -> float | None:
    found = next(b for b in table.bands if b.name == band)
    return found.norms[found.layers.index(layer)][found.modules.index(module)]


@pytest.mark.parametrize(
    ("target", "where"),
    [
        ("transformer_blocks.3.attn.to_q", ("transformer_blocks", 3, "attn.to_q")),
        ("transformer_blocks.12.attn.to_out.0", ("transformer_blocks", 12, "attn.to_out.0")),
        ("model.layers.0.self_attn.qkv_proj", ("model.layers", 0, "self_attn.qkv_proj")),
        ("model.layers.31.mlp.experts.w1", ("model.layers", 31, "mlp.experts.w1")),
        ("model.layers.31.mlp.experts.63.w1", ("model.layers", 31, "mlp.experts.w1")),
        ("layers.1.experts.4", ("layers", 1, "experts")),
        ("blocks.7", ("blocks", 7, WHOLE_LAYER)),
        ("0.proj", ("", 0, "proj")),
        ("norm_out.linear", (OUTSIDE, 0, "norm_out.linear")),
        ("time_embed.linear_1", (OUTSIDE, 0, "time_embed.linear_1")),
    ],
)
def test_the_place_of_a_target(target, where):
    assert place(target) == where


def test_every_cell_is_the_norm_of_its_update():
    names = [f"{band}.{i}.{m}" for band in ("double", "single") for i in (0, 1, 10) for m in ("attn", "mlp")]
    adapter = adapter_of([*names, "proj_out"], batch=3)
    table = norm_table(adapter, 1, "second")
    assert [band.name for band in table.bands] == ["double", "single", OUTSIDE]
    assert (table.title, table.index, table.batch) == ("second", 1, 3)
    for name, (A, B) in adapter.items():
        expected = float((0.5 * B[1] @ A[1]).norm())
        assert cell(table, *place(name)) == pytest.approx(expected, rel=1e-5)
    assert table.total == pytest.approx(float(total_norm(adapter)[1]), rel=1e-5)
    assert table.largest == max(norm for _, norm in table.strongest(100))


def test_layers_are_in_numerical_order_and_what_is_outside_comes_last():
    table = norm_table(adapter_of(["norm_out", "blocks.10.a", "blocks.9.a", "blocks.2.b", "blocks.2.a"]))
    assert [band.name for band in table.bands] == ["blocks", OUTSIDE]
    assert table.bands[0].layers == (2, 9, 10)
    assert table.bands[0].modules == ("a", "b")


def test_a_module_only_some_layers_have_leaves_gaps():
    table = norm_table(adapter_of(["blocks.0.a", "blocks.1.a", "blocks.1.b"]))
    assert table.bands[0].norms[0][1] is None
    assert table.bands[0].norms[1][1] > 0


def test_experts_count_together_on_an_axis_and_as_modules_of_their_own():
    grouped = adapter_of(["layers.0.mlp.experts.w1"], experts=4)
    A, B = grouped["layers.0.mlp.experts.w1"]
    apart = Adapter({f"layers.0.mlp.experts.{e}.w1": (A[:, e], B[:, e]) for e in range(4)}, grouped.scale)
    one, other = norm_table(grouped), norm_table(apart)
    assert one.bands[0].modules == other.bands[0].modules == ("mlp.experts.w1",)
    assert one.total == pytest.approx(other.total, rel=1e-5)


def test_the_strongest_are_named_by_their_path_in_the_backbone():
    table = arrange({"blocks.1.a": 1.0, "blocks.0.a": 3.0, "blocks.4": 2.0, "out": 4.0, "0.x": 5.0})
    assert table.strongest(4) == [("0.x", 5.0), ("out", 4.0), ("blocks.0.a", 3.0), ("blocks.4", 2.0)]


def test_a_negative_index_counts_from_the_end_and_a_wrong_one_is_refused():
    adapter = adapter_of(["blocks.0.a"], batch=3)
    assert norm_table(adapter, -1) == norm_table(adapter, 2)
    with pytest.raises(HywuError, match="only 3"):
        norm_table(adapter, 3)


def test_what_is_not_finite_never_reaches_a_browser():
    adapter = adapter_of(["blocks.0.a", "blocks.1.a"])
    adapter["blocks.0.a"][0][0, 0, 0] = torch.nan
    payload = norm_table(adapter).payload()
    json.dumps(payload, allow_nan=False)
    assert payload["bands"][0]["norms"][0] == [None]
    assert payload["largest"] == payload["bands"][0]["norms"][1][0]


def test_a_fresh_adapter_is_zero_everywhere():
    adapter = adapter_of(["blocks.0.a"]).map(torch.zeros_like)
    table = norm_table(adapter)
    assert (table.total, table.largest) == (0, 0)


def test_the_bands_of_a_spec_are_found_in_the_names():
    spec = LoraSpec.from_module(
        torch.nn.ModuleDict(
            {"blocks": torch.nn.ModuleList(torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4)}) for _ in "abc")}
        )
    )
    table = norm_table(adapter_of([target.name for target in spec.targets]))
    assert [(b.name, b.layers) for b in table.bands] == [(b.name, b.layers) for b in spec.bands]


@given(
    st.dictionaries(
        st.builds("{}.{}.{}".format, st.sampled_from("ab"), st.integers(0, 99), st.sampled_from("xyz")),
        st.floats(0, 1e6),
        min_size=1,
    )
)
def test_no_target_is_lost(values):
    table = arrange(values)
    for name, norm in values.items():
        assert cell(table, *place(name)) == norm
    assert table.total == pytest.approx(sqrt(sum(norm**2 for norm in values.values())))
    payload = table.payload()
    assert sum(len(b["layers"]) * len(b["modules"]) for b in payload["bands"]) >= len(values)
    assert payload["total"] == pytest.approx(table.total, rel=1e-4)
