import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core.errors import HywuError
from hywu_core.lora import Adapter, Band, LoraSpec, ModuleShape
from hywu_core.tokens import TokenLayout, decode, encode, n_tokens

dims = st.integers(1, 13)
layouts = st.builds(TokenLayout, st.sampled_from(["rank_anchored", "flat"]), st.integers(1, 9))


@st.composite
def specs(draw):
    bands = []
    for b in range(draw(st.integers(1, 2))):
        modules = tuple(
            ModuleShape(f"m{i}", draw(dims), draw(dims), draw(st.none() | st.integers(1, 3)))
            for i in range(draw(st.integers(1, 3)))
        )
        layers = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
        bands.append(Band(f"blocks{b}", len(layers), modules, tuple(layers)))
    return LoraSpec(tuple(bands), rank=draw(st.integers(1, 5)), alpha=draw(st.sampled_from([1.0, 4.0, 3.0])))


def random_adapter(spec, batch):
    def pair(target):
        experts = () if target.experts is None else (target.experts,)
        return (
            torch.randn(batch, *experts, spec.rank, target.d_in),
            torch.randn(batch, *experts, target.d_out, spec.rank),
        )

    return Adapter({target.name: pair(target) for target in spec.targets}, spec.scale)


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name][i], second[name][i]) for name in first for i in (0, 1)
    )


@settings(deadline=None, max_examples=150)
@given(specs(), layouts, st.integers(1, 3))
def test_decode_undoes_encode_exactly(spec, layout, batch):
    adapter = random_adapter(spec, batch)
    tokens = encode(adapter, spec, layout)
    for band in spec.bands:
        expected = (batch, band.n_layers, sum(n_tokens(band, layout, spec.rank)), spec.rank, layout.segment)
        assert tokens[band.name].shape == expected
    decoded = decode(tokens, spec, layout)
    assert same(decoded, adapter)
    assert list(decoded) == [target.name for target in spec.targets]
    assert decoded.scale == spec.scale
    decoded.check(spec)


@settings(deadline=None, max_examples=150)
@given(specs(), layouts, st.integers(1, 3))
def test_encode_undoes_decode_exactly_and_pads_with_zeros(spec, layout, batch):
    tokens = {
        band.name: torch.randn(
            batch, band.n_layers, sum(n_tokens(band, layout, spec.rank)), spec.rank, layout.segment
        )
        for band in spec.bands
    }
    again = encode(decode(tokens, spec, layout), spec, layout)
    padding = 0
    for name, token in tokens.items():
        kept = again[name] == token
        assert torch.equal(again[name][~kept], torch.zeros(int((~kept).sum())))
        padding += int((~kept).sum())
    stored = sum(token.numel() for token in tokens.values())
    assert stored - padding == batch * spec.n_parameters


def test_rank_anchored_token_is_a_channel_segment_of_every_rank():
    spec = LoraSpec((Band("b", 1, (ModuleShape("m", 6, 4),)),), rank=2, alpha=2)
    adapter = random_adapter(spec, 1)
    A, B = adapter["b.0.m"]
    tokens = encode(adapter, spec, TokenLayout("rank_anchored", 2))["b"][0, 0]
    expected = [A[0, :, 0:2], A[0, :, 2:4], A[0, :, 4:6], B[0].T[:, 0:2], B[0].T[:, 2:4]]
    assert torch.equal(tokens, torch.stack(expected))


def test_flat_token_is_a_run_of_the_row_major_matrix_and_experts_are_flattened_together():
    spec = LoraSpec((Band("b", 1, (ModuleShape("m", 3, 2, experts=2),)),), rank=2, alpha=2)
    adapter = random_adapter(spec, 1)
    A, B = adapter["b.0.m"]  # 12 numbers in A: three runs of 4; 8 in B: two runs
    tokens = encode(adapter, spec, TokenLayout("flat", 2))["b"][0, 0]
    assert torch.equal(tokens.flatten(), torch.cat([A.flatten(), B.flatten()]))


def test_a_tokens_of_all_modules_come_before_any_b_token():
    spec = LoraSpec((Band("b", 1, (ModuleShape("m", 2, 2), ModuleShape("n", 2, 2))),), rank=1, alpha=1)
    pairs = {
        "b.0.m": (torch.full((1, 1, 2), 1.0), torch.full((1, 2, 1), 3.0)),
        "b.0.n": (torch.full((1, 1, 2), 2.0), torch.full((1, 2, 1), 4.0)),
    }
    tokens = encode(Adapter(pairs), spec, TokenLayout("rank_anchored", 2))["b"]
    assert tokens[0, 0, :, 0, 0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["rank_anchored", "flat"])
def test_gradients_reach_every_number_that_is_not_padding(kind):
    spec = LoraSpec((Band("b", 2, (ModuleShape("m", 5, 7, experts=2), ModuleShape("n", 4, 6))),), 3, 3)
    layout = TokenLayout(kind, 4)
    shape = (2, 2, sum(n_tokens(spec.bands[0], layout, 3)), 3, 4)
    tokens = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    adapter = decode({"b": tokens}, spec, layout)
    sum(t.sum() for pair in adapter.values() for t in pair).backward()
    assert set(tokens.grad.unique().tolist()) == {0.0, 1.0}
    assert int(tokens.grad.sum()) == 2 * spec.n_parameters


@pytest.mark.parametrize("kind", ["rank_anchored", "flat"])
def test_decoding_copies_a_band_once_at_most(kind):
    spec = LoraSpec((Band("b", 3, (ModuleShape("m", 8, 12), ModuleShape("n", 4, 16))),), 2, 2)
    layout = TokenLayout(kind, 4)
    tokens = torch.randn(2, 3, sum(n_tokens(spec.bands[0], layout, 2)), 2, 4)
    storages = {
        t.untyped_storage().data_ptr() for pair in decode({"b": tokens}, spec, layout).values() for t in pair
    }
    assert len(storages) == 1
    if kind == "flat":
        assert storages == {tokens.untyped_storage().data_ptr()}


def test_another_scale_is_folded_into_b():
    spec = LoraSpec((Band("b", 1, (ModuleShape("m", 4, 4),)),), rank=2, alpha=2)
    adapter = random_adapter(spec, 1).scaled(0.25)
    decoded = decode(encode(adapter, spec, TokenLayout.for_spec(spec)), spec, TokenLayout.for_spec(spec))
    assert decoded.scale == 1
    assert torch.equal(decoded["b.0.m"][1], adapter["b.0.m"][1] * 0.25)


def test_what_does_not_fit_is_refused_with_both_shapes():
    spec = LoraSpec((Band("b", 2, (ModuleShape("m", 4, 4),)),), rank=2, alpha=2)
    layout = TokenLayout("rank_anchored", 4)
    with pytest.raises(HywuError, match=r"\(1, 2, 3, 2, 4\).*2, 2, 2, 4"):
        decode({"b": torch.zeros(1, 2, 3, 2, 4)}, spec, layout)
    with pytest.raises(HywuError, match="no tokens for band 'b'"):
        decode({"c": torch.zeros(1, 2, 2, 2, 4)}, spec, layout)
    other = LoraSpec(spec.bands, rank=3, alpha=3)
    with pytest.raises(HywuError, match=r"rank 3.*2"):
        encode(random_adapter(other, 1), spec, layout)
