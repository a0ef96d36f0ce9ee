import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hywu_core.errors import HywuError
from hywu_core.lora.architectures import FLUX, FLUX_2, QWEN_IMAGE, architecture_for, architecture_of
from hywu_core.lora.factors import Factors
from hywu_core.lora.keys import format_of, from_file, resolve_format, to_file

WIDTH, RANK = 8, 2


def targets_of(architecture, layers=2):
    names = list(architecture.loose.values())
    for blocks, (_, modules) in architecture.blocks.items():
        for layer in range(layers):
            names += [f"{blocks}.{layer}.{part}" for parts in modules.values() for part in parts]
    return names


def factors_of(names):
    """FLUX's fused modules need q, k and v as wide as their input; the rest may be anything."""
    factors = {}
    for name in names:
        d_out = 4 * WIDTH if name.endswith(("proj_mlp", "net.0.proj")) else WIDTH
        factors[name] = Factors(torch.randn(RANK, WIDTH), torch.randn(d_out, RANK))
    return factors


ALL = {architecture.name: targets_of(architecture) for architecture in (FLUX, QWEN_IMAGE, FLUX_2)}
CONTAINERS = ("base_model.model.", "diffusion_model.", "transformer.", "lora_unet_")
NATIVE = ["model.layers.0.self_attn.qkv_proj", "transformer.h.0.c_fc", "double_blocks.0.img_attn.qkv"]


@pytest.mark.parametrize("key_format", ["auto", "comfy", "diffusers", "native", "kohya"])
@pytest.mark.parametrize("names", ALL.values(), ids=ALL.keys())
def test_every_format_of_every_architecture_comes_back_exactly(names, key_format):
    factors = factors_of(names)
    back = from_file(to_file(factors, key_format))
    assert back.keys() == factors.keys()
    for name, f in factors.items():
        assert torch.equal(back[name].A, f.A)
        assert torch.equal(back[name].B, f.B)
        assert back[name].scale == 1


def test_native_names_are_never_changed():
    factors = factors_of(NATIVE)
    assert resolve_format("auto", factors) == "native"
    assert from_file(to_file(factors, "auto"), before="").keys() == factors.keys()


@given(
    containers=st.lists(st.sampled_from(CONTAINERS), max_size=3).map("".join),
    key_format=st.sampled_from(["comfy", "diffusers"]),
)
def test_what_looks_like_a_container_may_be_the_targets_own_name(containers, key_format):
    name = f"{containers}h.0.attn.c_attn"
    assert list(from_file(to_file(factors_of([name]), key_format))) == [name]


def test_peft_may_have_wrapped_a_container():
    for container, names in (("transformer.", ALL["flux"]), ("diffusion_model.", ALL["qwen_image"])):
        peft = {f"base_model.model.{key}": t for key, t in to_file(factors_of(names), "diffusers").items()}
        file = {key.replace("transformer.", container, 1): tensor for key, tensor in peft.items()}
        assert from_file(file).keys() == set(names)
    gpt = {f"base_model.model.transformer.h.0.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    assert list(from_file(gpt)) == ["transformer.h.0"]


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (ALL["flux"], "transformer."),
        (ALL["qwen_image"], "diffusion_model."),
        (["transformer_blocks.0.attn.to_q"], "transformer."),  # FLUX or Qwen-Image: loaders of both take it
        (NATIVE, ""),
    ],
)
def test_auto_writes_what_stock_loaders_expect(names, prefix):
    tensors = to_file(factors_of(names), "auto")
    assert all(f"{prefix}{name}.lora_A.weight" in tensors for name in names)
    assert not any(key.endswith(".alpha") for key in tensors)


@pytest.mark.parametrize(
    ("base", "prefix"),
    [("", "transformer."), ("FLUX.1-dev", "transformer."), ("Qwen/Qwen-Image", "diffusion_model.")],
)
def test_names_that_several_have_are_written_for_the_backbone_they_are_of(base, prefix):
    """FLUX's stock loader knows them behind "transformer." alone, and without a base they may be FLUX's."""
    factors = factors_of([f"transformer_blocks.0.attn.to_{x}" for x in "qkv"])
    assert all(key.startswith(prefix) for key in to_file(factors, "comfy", base))
    if base:
        assert from_file(to_file(factors, "kohya", base)).keys() == factors.keys()


def test_architectures_are_told_apart_by_what_only_they_have():
    assert architecture_of(ALL["flux"]) is FLUX
    assert architecture_of(ALL["qwen_image"]) is QWEN_IMAGE
    assert architecture_of(["transformer_blocks.0.attn.to_q"]) is None
    assert architecture_of(["double_blocks.0.img_attn.qkv"]) is FLUX_2  # of FLUX.1 it is a file's name only


def test_the_same_bare_name_means_different_modules_in_different_files():
    qwen = factors_of(["img_in", "transformer_blocks.0.img_mlp.net.2"])
    assert from_file(to_file(qwen, "kohya")).keys() == qwen.keys()
    flux = factors_of(["x_embedder", "single_transformer_blocks.0.proj_out"])
    file = to_file(flux, "kohya")
    assert "lora_unet_img_in.lora_down.weight" in file
    assert from_file(file).keys() == flux.keys()


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
@pytest.mark.parametrize(
    ("module", "d_in", "d_out"),
    [("single_blocks.3.linear1", 1, 9), ("single_blocks.3.linear2", 4, 1),
     ("double_blocks.0.img_mlp.0", 1, 6), ("double_blocks.0.txt_mlp.2", 3, 1),
     ("double_stream_modulation_img.lin", 1, 6)],
)  # fmt: skip
def test_flux_2_has_the_original_names_over_sizes_of_its_own(prefix, module, d_in, d_out):
    """Its gated MLPs made a file with FLUX.1's names of it that fitted no model."""
    sizes = {module: (d_in * WIDTH, d_out * WIDTH), "double_blocks.0.img_attn.qkv": (WIDTH, 3 * WIDTH)}
    file = {}
    for name, (inputs, outputs) in sizes.items():
        name = name.replace(".", "_") if prefix == "lora_unet_" else name
        file[f"{prefix}{name}.lora_down.weight"] = torch.randn(RANK, inputs)
        file[f"{prefix}{name}.lora_up.weight"] = torch.randn(outputs, RANK)
    back = from_file(file)
    assert back.keys() == sizes.keys()
    assert format_of(to_file(back, "auto")) == "comfy"


@pytest.mark.parametrize("block", ["blocks.0.self_attn.q_proj", "layers.0.attention.qkv"])
@pytest.mark.parametrize("loose", ["final_layer.linear", "img_in", "time_in.in_layer"])
def test_what_other_models_have_outside_their_blocks_keeps_its_name(block, loose):
    file = {f"diffusion_model.{n}.lora_{x}.weight": torch.ones(2, 2) for n in (block, loose) for x in "AB"}
    assert list(from_file(file)) == [block, loose]


def test_a_fused_module_of_the_first_release_comes_apart_with_alpha():
    A, B = torch.randn(RANK, WIDTH), torch.randn(7 * WIDTH, RANK)
    file = {
        "lora_unet_single_blocks_11_linear1.lora_down.weight": A,
        "lora_unet_single_blocks_11_linear1.lora_up.weight": B,
        "lora_unet_single_blocks_11_linear1.alpha": torch.tensor(1.0),
        "diffusion_model.double_blocks.3.txt_mod.lin.lora_A.weight": A,
        "diffusion_model.double_blocks.3.txt_mod.lin.lora_B.weight": B,
    }
    back = from_file(file)
    parts = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]
    joined = torch.cat([back[f"single_transformer_blocks.11.{part}"].B for part in parts])
    assert torch.equal(joined, B)
    assert all(back[f"single_transformer_blocks.11.{part}"].scale == 1 / RANK for part in parts)
    assert back["transformer_blocks.3.norm1_context.linear"].scale == 1


@pytest.mark.parametrize(
    ("A", "B"),
    [("lora_A.weight", "lora_B.weight"), ("lora_A.default.weight", "lora_B.default.weight"),
     ("lora_down.weight", "lora_up.weight"), ("lora.down.weight", "lora.up.weight")],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "transformer.", "diffusion_model.", "base_model.model."])
def test_spellings_of_other_programs(prefix, A, B):
    name = "transformer_blocks.4.attn.to_out.0"
    file = {f"{prefix}{name}.{A}": torch.randn(2, 3), f"{prefix}{name}.{B}": torch.randn(5, 2)}
    assert list(from_file(file)) == [name]


def test_factors_of_one_by_one_convolutions_are_matrices():
    file = {"x.lora_down.weight": torch.randn(2, 3, 1, 1), "x.lora_up.weight": torch.randn(5, 2, 1, 1)}
    assert from_file(file)["x"].A.shape == (2, 3)


def test_text_encoder_parts_are_skipped_aloud(caplog):
    file = to_file(factors_of(["transformer_blocks.0.ff.net.2"]), "auto")
    file["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.zeros(2, 3)
    with caplog.at_level(logging.WARNING, logger="hywu"):
        assert list(from_file(file)) == ["transformer_blocks.0.ff.net.2"]
    assert "1 text encoder" in caplog.text
    with pytest.raises(HywuError, match="text encoders only"):
        from_file({key: tensor for key, tensor in file.items() if key.startswith("lora_te")})


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({}, "holds no LoRA"),
        ({"conv.weight": (3, 3)}, "'conv.weight'"),
        ({"x.lora_A.weight": (2, 3)}, "only A of 'x'"),
        ({"x.alpha": ()}, "only alpha of 'x'"),
        ({"x.lora_A.weight": (2, 3), "x.lora_B.weight": (3, 3)}, "do not fit"),
        ({"x.lora_A.weight": (0, 3), "x.lora_B.weight": (3, 0)}, "do not fit"),
        ({"x.lora_A.weight": (2,), "x.lora_B.weight": (2,)}, "do not fit"),
        ({"x.lora_A.weight": (2, 3), "x.lora_B.weight": (3, 2), "x.alpha": (2,)}, "alpha of 'x'"),
        ({"x.lora_A.weight": (2, 3), "x.lora_B.weight": (3, 2), "x.dora_scale": (3, 1)}, "is a DoRA"),
        ({"x.hada_w1_a": (2, 3), "x.alpha": ()}, r"is a LoHa \('x.hada_w1_a'\)"),
        ({"x.lokr_w1": (2, 3)}, "is a LoKr"),
        ({"x.lora_mid.weight": (2, 2, 3, 3)}, "Tucker"),
        ({"img_in.lora_A.weight": (2, 3), "img_in.lora_B.bias": (3,)}, "LoRA with biases"),
        ({"diffusion_model.img_in.diff": (3, 3)}, "full difference"),
        ({"lora_unet_input_blocks_1_attn.oft_blocks": (2, 2, 2)}, "is a OFT"),
        ({"double_blocks.0.processor.qkv_lora1.down.weight": (2, 3)}, "only A of"),
        ({"lora_unet_input_blocks_1.lora_down.weight": (2, 3),
          "lora_unet_input_blocks_1.lora_up.weight": (3, 2)}, "neither FLUX nor Qwen-Image"),
        ({"double_blocks.0.img_attn.qkv.lora_A.weight": (2, 8),
          "double_blocks.0.img_attn.qkv.lora_B.weight": (16, 2)}, "16 outputs; too few"),
        ({f"{p}transformer_blocks.0.attn.to_q.lora_{x}.weight": (2, 2)
          for p in ("transformer.", "diffusion_model.") for x in "AB"}, "twice"),
    ],
)  # fmt: skip
def test_what_is_not_a_whole_plain_lora_is_refused(file, message):
    with pytest.raises(HywuError, match=message):
        from_file({key: torch.zeros(shape) for key, shape in file.items()})


def test_the_last_modulation_of_flux_is_turned_between_its_namings():
    f = Factors(torch.randn(RANK, WIDTH), torch.arange(4.0 * RANK).reshape(4, RANK))
    for file in (
        to_file({"norm_out.linear": f, "x_embedder": f}, "kohya"),
        {
            "diffusion_model.final_layer.adaLN_modulation.1.lora_A.weight": f.A,
            "diffusion_model.final_layer.adaLN_modulation.1.lora_B.weight": f.B.roll(2, dims=0),
        },
    ):
        assert torch.equal(from_file(file)["norm_out.linear"].B, f.B)
    up = to_file({"norm_out.linear": f, "x_embedder": f}, "kohya")[
        "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"
    ]
    assert torch.equal(up, f.B.roll(2, dims=0))
    assert architecture_of(["norm_out.linear", "single_transformer_blocks.0.proj_mlp"]) is FLUX


def test_a_file_of_another_backbone_is_written_in_the_format_it_came_in():
    wan = ["blocks.0.self_attn.q", "blocks.0.ffn.2"]
    file = {f"diffusion_model.{n}.lora_{x}.weight": torch.ones(2, 2) for n in wan for x in "AB"}
    assert format_of(file) == "comfy"
    factors = from_file(file)
    assert list(factors) == wan
    came_in = resolve_format("auto", factors, "comfy")
    assert to_file(factors, came_in).keys() == file.keys()
    assert resolve_format("auto", factors) == "native"
    assert resolve_format("auto", ALL["flux"], "kohya") == "comfy"


@pytest.mark.parametrize(
    ("base", "architecture", "name", "version"),
    [
        ("Qwen/Qwen-Image", QWEN_IMAGE, "Qwen-Image/lora", "qwen_image"),
        ("Qwen/Qwen-Image-Edit", QWEN_IMAGE, "Qwen-Image-Edit/lora", "qwen_image"),
        ("Qwen/Qwen-Image-Edit-2509", QWEN_IMAGE, "Qwen-Image-Edit-Plus/lora", "qwen_image"),
        ("qwen_image_edit_2511_bf16", QWEN_IMAGE, "Qwen-Image-Edit-2511/lora", "qwen_image"),
        ("", QWEN_IMAGE, "Qwen-Image-Edit-Plus/lora", "qwen_image"),
        ("black-forest-labs/FLUX.1-Kontext-dev", FLUX, "Flux.1-dev/lora", "flux1"),
        ("meituan-longcat/LongCat-Image-Edit", FLUX, "LongCat-Image-Edit/lora", "longcat_image"),
        ("longcat_image_edit", FLUX, "LongCat-Image-Edit/lora", "longcat_image"),
        ("LongCat-Image", FLUX, "LongCat-Image/lora", "longcat_image"),
    ],
)
def test_headers_call_backbones_what_other_trainers_call_them(base, architecture, name, version):
    assert architecture.header_of(base) == (name, version)
    attention = ["transformer_blocks.0.attn.to_q"]  # of FLUX or of Qwen-Image: the id says
    assert architecture_for(attention, base) is (architecture if base else None)


def test_formats_that_have_no_names_for_the_targets_are_refused():
    with pytest.raises(HywuError, match="FLUX and Qwen-Image only"):
        to_file(factors_of(NATIVE), "kohya")
    partly = factors_of([f"transformer_blocks.0.{m}" for m in ("attn.to_q", "attn.to_k", "ff.net.2")])
    with pytest.raises(HywuError, match=r"lacks 'transformer_blocks\.0\.attn\.to_v'"):
        to_file(partly, "kohya")
    with pytest.raises(HywuError, match="Unknown key format 'onnx'"):
        to_file(factors_of(NATIVE), "onnx")
    with pytest.raises(HywuError, match="expert axis"):
        to_file({"a.b": Factors(torch.zeros(3, 2, 4), torch.zeros(3, 4, 2))}, "diffusers")
