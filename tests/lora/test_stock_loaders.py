"""Files as the loaders of others read them: diffusers and PEFT (ComfyUI's own loader: tests/comfyui)."""

import copy

import pytest
import torch

from hywu_core.apply import attach
from hywu_core.lora import Adapter, LoraSpec, save_adapter, save_peft
from hywu_core.lora.keys import Factors, to_file

diffusers = pytest.importorskip("diffusers")
loaders = pytest.importorskip("diffusers.loaders.lora_pipeline")


def tiny_flux():
    model = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
    )
    inputs = {
        "hidden_states": torch.randn(1, 6, 4),
        "encoder_hidden_states": torch.randn(1, 3, 8),
        "pooled_projections": torch.randn(1, 8),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(3, 3),
    }
    return model, inputs, diffusers.loaders.FluxLoraLoaderMixin


def tiny_qwen():
    model = diffusers.QwenImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 6, 6),
    )
    inputs = {
        "hidden_states": torch.randn(1, 6, 4),
        "encoder_hidden_states": torch.randn(1, 3, 8),
        "encoder_hidden_states_mask": torch.ones(1, 3, dtype=torch.long),
        "timestep": torch.tensor([0.5]),
        "img_shapes": [[(1, 2, 3)]],
    }
    return model, inputs, diffusers.loaders.QwenImageLoraLoaderMixin


def random_adapter(model):
    spec = LoraSpec.from_module(model, rank=2, alpha=1)
    pairs = {t.name: (torch.randn(1, 2, t.d_in) / 4, torch.randn(1, t.d_out, 2) / 4) for t in spec.targets}
    return Adapter(pairs, spec.scale)


@torch.no_grad()
def run(model, inputs):
    return model(**inputs, return_dict=False)[0]


def attached(model, inputs, adapter, strength):
    with attach(model, adapter, strength):
        return run(model, inputs)


@pytest.mark.parametrize(
    ("build", "key_format"),
    [(tiny_flux, "auto"), (tiny_qwen, "auto"), (tiny_qwen, "diffusers"), (tiny_qwen, "kohya")],
)
def test_diffusers_makes_of_the_file_what_attach_makes_of_the_adapter(tmp_path, build, key_format):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model, inputs, loader = build()
    adapter = random_adapter(model)
    path = save_adapter(adapter, tmp_path / "x.safetensors", strength=0.5, key_format=key_format)
    expected = attached(model, inputs, adapter, strength=0.5)
    assert (expected - run(model, inputs)).abs().max() > 1e-2
    state = loader.lora_state_dict(str(path))
    state = state[0] if isinstance(state, tuple) else state
    model.load_lora_adapter(state, prefix="transformer")
    torch.testing.assert_close(run(model, inputs), expected, rtol=1e-4, atol=1e-5)


def test_diffusers_takes_kohya_files_of_flux_apart_as_we_put_them_together():
    width = 3072  # built into its converter
    torch.manual_seed(0)
    factors = {}
    for band, module, d_out in (
        ("transformer_blocks", "attn.to_q", width),
        ("transformer_blocks", "attn.to_k", width),
        ("transformer_blocks", "attn.to_v", width),
        ("single_transformer_blocks", "attn.to_q", width),
        ("single_transformer_blocks", "attn.to_k", width),
        ("single_transformer_blocks", "attn.to_v", width),
        ("single_transformer_blocks", "proj_mlp", 4 * width),
        ("single_transformer_blocks", "norm.linear", 3 * width),
    ):
        factors[f"{band}.0.{module}"] = Factors(torch.randn(1, width), torch.randn(d_out, 1))
    state = diffusers.loaders.FluxLoraLoaderMixin.lora_state_dict(to_file(factors, "kohya"))
    assert len(state) == 2 * len(factors)
    for name, f in factors.items():
        B, A = (state[f"transformer.{name}.lora_{x}.weight"] for x in "BA")
        torch.testing.assert_close(B[:64] @ A, f.B[:64] @ f.A)


def test_peft_opens_the_directory(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model, inputs, _ = tiny_flux()
    adapter = random_adapter(model)
    folder = save_peft(adapter, tmp_path / "x", strength=2.0)
    expected = attached(model, inputs, adapter, strength=2.0)
    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(folder))
    torch.testing.assert_close(run(wrapped, inputs), expected, rtol=1e-4, atol=1e-5)
