import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hywu_core.errors import HywuError
from hywu_core.lora import Band, LoraSpec, ModuleShape


def block(width=8):
    layer = nn.Module()
    layer.attn = nn.Module()
    layer.attn.to_q = nn.Linear(width, width)
    layer.attn.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout()])
    layer.norm = nn.LayerNorm(width)
    return layer


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedder = nn.Linear(3, 8)
        self.blocks = nn.ModuleList([block(), block(), block()])
        self.single = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)])


def test_bands_are_the_outermost_module_lists_and_inner_ones_stay_in_the_path():
    spec = LoraSpec.from_module(Backbone(), rank=2, alpha=3)
    assert [band.name for band in spec.bands] == ["blocks", "single"]
    assert spec.bands[0].n_layers == 3
    assert spec.bands[0].modules == (ModuleShape("attn.to_q", 8, 8), ModuleShape("attn.to_out.0", 8, 8))
    assert [target.name for target in spec.bands[0].targets[:3]] == [
        "blocks.0.attn.to_q",
        "blocks.0.attn.to_out.0",
        "blocks.1.attn.to_q",
    ]
    assert [target.name for target in spec.bands[1].targets] == ["single.0", "single.1"]
    assert spec.scale == 1.5


def test_every_target_is_a_module_of_the_model_with_the_dims_it_says():
    model = Backbone()
    for target in LoraSpec.from_module(model, include="*").targets:
        linear = model.get_submodule(target.name)
        assert (linear.in_features, linear.out_features) == (target.d_in, target.d_out)


def test_linears_outside_the_layers_come_only_when_asked_for():
    spec = LoraSpec.from_module(Backbone(), include=["embedder", "blocks.*.to_q"])
    assert [(band.n_layers, len(band.modules)) for band in spec.bands] == [(3, 1), (1, 1)]
    assert spec.targets[-1].name == "embedder"


def test_unlike_layers_of_one_list_become_several_bands_that_keep_their_indices():
    model = nn.Module()
    model.blocks = nn.ModuleList([block(8), block(4), block(8)])
    spec = LoraSpec.from_module(model)
    assert [(band.name, band.layers) for band in spec.bands] == [("blocks:0", (0, 2)), ("blocks:1", (1,))]
    assert [t.name for t in spec.targets if t.module == "attn.to_q"] == [
        "blocks.0.attn.to_q",
        "blocks.2.attn.to_q",
        "blocks.1.attn.to_q",
    ]


def test_a_model_that_is_a_list_itself():
    spec = LoraSpec.from_module(nn.ModuleList([block(), block()]))
    assert spec.bands[0].n_layers == 2
    assert spec.targets[0].name == "0.attn.to_q"


def test_patterns_are_shell_patterns_or_regular_expressions_and_exclude_wins():
    spec = LoraSpec.from_module(Backbone(), include="blocks.*", exclude=re.compile(r"to_out\.\d$"))
    assert {target.module for target in spec.targets} == {"attn.to_q"}
    assert len(LoraSpec.from_module(Backbone(), include=re.compile("^single")).targets) == 2


def test_the_projections_of_fused_multihead_attention_are_left_alone():
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16)])
    assert {t.module for t in LoraSpec.from_module(model).targets} == {"linear1", "linear2"}


def test_a_wrapped_linear_is_one_target():
    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 8, 4
            self.inner = nn.Linear(8, 4)

    model = nn.Module()
    model.blocks = nn.ModuleList([Quantised()])
    assert [t.name for t in LoraSpec.from_module(model).targets] == ["blocks.0"]


def test_selecting_nothing_is_an_error_that_shows_the_patterns():
    with pytest.raises(HywuError, match=r"to_nowhere"):
        LoraSpec.from_module(Backbone(), include="*.to_nowhere")


def test_parameter_count():
    bands = (Band("b", 2, (ModuleShape("m", 3, 5), ModuleShape("e", 2, 2, experts=4))),)
    assert LoraSpec(bands, rank=7).n_parameters == 2 * 7 * (3 + 5 + 4 * (2 + 2))


names = st.text(st.characters(codec="utf-8", exclude_characters="{}"), min_size=1, max_size=8)
modules = st.builds(
    ModuleShape, names, st.integers(1, 9999), st.integers(1, 9999), st.none() | st.integers(1, 64)
)


@st.composite
def specs(draw):
    bands = []
    for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        layers = tuple(draw(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True)))
        shapes = draw(st.lists(modules, min_size=1, max_size=4, unique_by=lambda m: m.name))
        bands.append(Band(name, len(layers), tuple(shapes), layers, path=f"{len(bands)}/{name}.{{}}"))
    return LoraSpec(tuple(bands), draw(st.integers(1, 128)), draw(st.floats(0.1, 256)))


@given(specs())
def test_json_round_trip(spec):
    assert LoraSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(LoraSpec.from_dict(spec.to_dict())) == hash(spec)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("rank"),
        lambda d: d.update(bands=3),
        lambda d: d["bands"][0].update(layers=None),
        lambda d: d["bands"][0]["modules"][0].update(d_in="wide"),
        lambda d: d["bands"][0]["modules"][0].update(d_in=0),
        lambda d: d["bands"].append(d["bands"][0]),
        lambda d: d.update(rank=0),
        lambda d: d.update(alpha=float("nan")),
        lambda d: d.update(bands=[]),
    ],
)
def test_damaged_data_is_refused(damage):
    data = LoraSpec.from_module(Backbone()).to_dict()
    damage(data)
    with pytest.raises(HywuError):
        LoraSpec.from_dict(data)


def test_layer_indices_must_be_as_many_as_layers():
    with pytest.raises(HywuError, match="2 layers but 3"):
        Band("b", 2, (ModuleShape("m", 1, 1),), layers=(0, 1, 2))


def test_describe_names_bands_modules_and_sizes():
    text = LoraSpec.from_module(Backbone(), rank=2).describe()
    assert "blocks: 3 layers x 2 modules" in text
    assert "attn.to_q  8 -> 8" in text
