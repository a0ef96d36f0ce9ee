import pytest
import torch

from hywu_core import Adapter, load_generator
from hywu_core.embedded import GENERATOR
from hywu_core.errors import HywuError
from hywu_core.lora import Band, LoraSpec, ModuleShape
from hywu_core.tokens import TokenLayout, decode, encode, n_tokens

from ..released import RELEASED_BAND


def spec_of(*dims, rank=4):
    modules = tuple(ModuleShape(f"m{i}", d_in, d_out) for i, (d_in, d_out) in enumerate(dims))
    return LoraSpec((Band("blocks", 2, modules),), rank)


def random_adapter(spec):
    random = torch.Generator().manual_seed(0)
    return Adapter(
        {
            target.name: tuple(
                torch.randn(shape, generator=random) for shape in target.factor_shapes(spec.rank, 1)
            )
            for target in spec.targets
        },
        spec.scale,
    )


@pytest.mark.parametrize(
    ("dims", "segment"),
    [
        (((256, 1536), (1280, 256)), 256),
        (((64, 48), (32, 16)), 16),
        (((3072, 3072),), 1024),
        (((1536, 1536),), 768),  # not 1024: it does not divide
        (((7, 11),), 1),
    ],
)
def test_the_default_segment_is_the_largest_common_divisor_up_to_1024(dims, segment):
    assert TokenLayout.for_spec(spec_of(*dims)).segment == segment


@pytest.mark.parametrize(
    ("odd", "segment"),
    [
        ((3072, 6), 1024),
        ((6, 3072), 1024),
        ((3072, 1), 1024),
        ((3072, 64), 64),  # as short tokens as are trained with already
    ],
)
def test_one_odd_linear_does_not_cut_all_others_small(odd, segment):
    spec = spec_of(*[(3072, 3072), (3072, 12288), (12288, 3072)], odd)
    layout = TokenLayout.for_spec(spec)
    assert layout.segment == segment
    adapter = random_adapter(spec)
    again = decode(encode(adapter, spec, layout), spec, layout)
    assert all(torch.equal(x, y) for name in adapter for x, y in zip(adapter[name], again[name], strict=True))


def test_the_generators_that_there_are_keep_their_layout():
    shipped = load_generator(GENERATOR)
    assert TokenLayout.for_spec(shipped.spec) == shipped.layout
    tiny = spec_of((32, 8))
    assert TokenLayout.for_spec(tiny).segment == 8  # longer ones would be mostly padding


def test_the_release_has_719_plus_660_tokens_in_a_layer():
    assert n_tokens(RELEASED_BAND, TokenLayout("flat", 1024), rank=16) == (719, 660)


def test_segments_that_do_not_divide_are_rounded_up_per_matrix():
    (band,) = spec_of((10, 7), (3, 16)).bands
    assert n_tokens(band, TokenLayout("rank_anchored", 4), rank=4) == (3 + 1, 2 + 4)
    assert n_tokens(band, TokenLayout("flat", 4), rank=3) == (3 + 1, 2 + 4)


def test_bad_layouts_are_refused_with_the_choices():
    with pytest.raises(HywuError, match="rank_anchored, flat"):
        TokenLayout("diagonal", 4)
    with pytest.raises(HywuError, match="0"):
        TokenLayout("flat", 0)


def test_plain_data_round_trip():
    layout = TokenLayout("flat", 96)
    assert TokenLayout(**layout.to_dict()) == layout
