"""Files as the loaders of others read them: diffusers and PEFT (ComfyUI's own loader: tests/comfyui)."""

import copy

import pytest
import torch
from safetensors.torch import save_file

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from hywu_core.lora import LoraSpec, load_adapter, save_adapter, save_peft  # noqa: E402
from hywu_core.lora.factors import Factors  # noqa: E402
from hywu_core.lora.keys import to_file  # noqa: E402

from . import stock  # noqa: E402

STRENGTH = 0.5


def flux():
    return diffusers.FluxKontextPipeline, stock.tiny_flux(guidance=True)


def embedded():
    from hywu_core.backbones.embedded import EmbeddedBackbone, EmbeddedBackboneConfig

    return diffusers.FluxKontextPipeline, EmbeddedBackbone(EmbeddedBackboneConfig()).transformer


def qwen():
    return diffusers.QwenImageEditPlusPipeline, stock.tiny_qwen()


BACKBONES = [flux, embedded, qwen]


def pipeline_of(build):
    """A real pipeline with nothing in it but the backbone: all that loading a LoRA needs."""
    kind, model = build()
    names = [name for name in kind.__init__.__annotations__ if name not in ("transformer", "return")]
    return kind(**dict.fromkeys(names), transformer=model)


def everything(model, rank=3):
    return stock.random_adapter(LoraSpec.from_module(model, include="*", rank=rank, alpha=2 * rank))


def dense(adapter, strength=1.0):
    return {name: strength * adapter.scale * B[0].float() @ A[0].float() for name, (A, B) in adapter.items()}


def deltas(model, prefix=""):
    """What PEFT's layers in a model add to its weights, by the module's path."""
    layers = peft.tuners.lora.LoraLayer
    found = {name: module for name, module in model.named_modules() if isinstance(module, layers)}
    return {
        n.removeprefix(prefix): m.get_delta_weight(m.active_adapters[0]).detach() for n, m in found.items()
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name].float(), delta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", BACKBONES)
@pytest.mark.parametrize("key_format", ["auto", "diffusers"])
def test_a_pipeline_of_diffusers_loads_every_update_of_a_saved_file(tmp_path, build, key_format):
    torch.manual_seed(0)
    pipeline = pipeline_of(build)
    adapter = everything(pipeline.transformer)
    path = save_adapter(adapter, tmp_path / "x.safetensors", strength=STRENGTH, key_format=key_format)
    pipeline.load_lora_weights(str(path))
    assert_same(deltas(pipeline.transformer), dense(adapter, STRENGTH))


@pytest.mark.parametrize("build", BACKBONES)
def test_peft_loads_every_update_of_a_saved_folder(tmp_path, build):
    torch.manual_seed(0)
    _, model = build()
    adapter = everything(model)
    folder = save_peft(adapter, tmp_path / "x", strength=STRENGTH)
    expected = dense(adapter, STRENGTH)
    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(folder))
    assert_same(deltas(wrapped, "base_model.model."), expected)

    injected = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(str(folder)))
    weights = peft.utils.load_peft_weights(str(folder), device="cpu")
    result = peft.set_peft_model_state_dict(injected, weights)
    assert not result.unexpected_keys
    assert_same(deltas(injected, "base_model.model."), expected)


def test_peft_adapts_a_module_outside_the_layers_and_not_its_namesakes(tmp_path):
    torch.manual_seed(0)
    model = stock.tiny_flux()
    adapter = stock.random_adapter(LoraSpec.from_module(model, include=["proj_out", "*.ff.net.2"], rank=2))
    folder = save_peft(adapter, tmp_path / "x")
    assert_same(
        deltas(peft.PeftModel.from_pretrained(model, str(folder)), "base_model.model."), dense(adapter)
    )


@pytest.mark.parametrize(
    "patterns",
    [
        {},
        {"ff.net.2": 3, r"single_transformer_blocks\.1\.attn\.to_q": 5},
        {"^transformer_blocks.0.attn.to_q": 64},  # as PEFT's documentation has them
    ],
    ids=["none", "ends", "from the start"],
)
@pytest.mark.parametrize("stabilised", [False, True])
def test_a_folder_that_peft_wrote_means_what_peft_makes_of_it(tmp_path, stabilised, patterns):
    torch.manual_seed(0)
    model = stock.tiny_flux()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "ff.net.2", "proj_mlp"],
        use_rslora=stabilised,
        rank_pattern={"ff.net.2": 2} if patterns else {},
        alpha_pattern=patterns,
        init_lora_weights=False,
    )
    wrapped = peft.get_peft_model(model, config)
    wrapped.save_pretrained(str(tmp_path))
    expected = deltas(wrapped, "base_model.model.")
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        assert_same(dense(load_adapter(path)), expected)


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_that_diffusers_wrote_means_what_it_made_of_it(tmp_path, whole):
    torch.manual_seed(0)
    pipeline = pipeline_of(flux)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "ff.net.2"],
        alpha_pattern={"^transformer_blocks.0.attn.to_q": 64},
        init_lora_weights=False,
    )
    pipeline.transformer.add_adapter(config, "default")
    expected = deltas(pipeline.transformer)
    if whole:
        layers = peft.get_peft_model_state_dict(pipeline.transformer)
        metadata = diffusers.training_utils._collate_lora_metadata({"transformer": pipeline.transformer})
        pipeline.save_lora_weights(str(tmp_path), transformer_lora_layers=layers, **metadata)
    else:
        pipeline.transformer.save_lora_adapter(str(tmp_path))
    assert_same(dense(load_adapter(tmp_path / "pytorch_lora_weights.safetensors")), expected)


def updates_in(state):
    """Dense updates of diffusers' own state dict; of wide modules the first outputs are enough."""
    ending = ".lora_A.weight"
    names = [key.removesuffix(ending) for key in state if key.endswith(ending)]
    products = {n: state[f"{n}.lora_B.weight"][:64] @ state[n + ending] for n in names}
    return {n.removeprefix("transformer."): product for n, product in products.items()}


@pytest.mark.parametrize("name", ["musubi", "lightx2v", "ai_toolkit", "with_alpha", "diffsynth"])
def test_qwen_files_of_other_programs_mean_what_diffusers_makes_of_them(tmp_path, name):
    torch.manual_seed(1)
    pipeline = pipeline_of(qwen)
    save_file(stock.qwen_files(pipeline.transformer)[name], tmp_path / "x.safetensors")
    pipeline.load_lora_weights(str(tmp_path / "x.safetensors"))
    ours = load_adapter(tmp_path / "x.safetensors")
    assert len(ours) == 20
    assert_same(dense(ours), deltas(pipeline.transformer))


def test_flux_files_of_xlabs_mean_what_diffusers_makes_of_them(tmp_path):
    torch.manual_seed(1)
    tensors = stock.xlabs_file(64)
    save_file(tensors, tmp_path / "x.safetensors")
    theirs = updates_in(diffusers.FluxKontextPipeline.lora_state_dict(dict(tensors)))
    assert_same(dense(load_adapter(tmp_path / "x.safetensors")), theirs)
    assert len(theirs) == 12


WIDTH = 3072  # built into diffusers' converter


def test_flux_files_of_sd_scripts_mean_what_diffusers_makes_of_them(tmp_path):
    torch.manual_seed(1)
    with torch.device("meta"):
        model = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    modules = {name.replace(".", "_"): shape for name, shape in stock.original_modules(model).items()}
    suffixes = (".lora_down.weight", ".lora_up.weight")
    tensors = stock.lora_tensors("lora_unet_", modules, suffixes, ranks=(3, 2), alphas=(1.5, 4.0))
    for layer in ("lora_unet_final_layer_linear", "lora_unet_final_layer_adaLN_modulation_1"):
        # Of these two diffusers forgets the alpha.
        tensors[f"{layer}.alpha"] = torch.tensor(float(tensors[f"{layer}.lora_down.weight"].shape[0]))
    save_file(tensors, tmp_path / "x.safetensors")
    theirs = updates_in(diffusers.FluxKontextPipeline.lora_state_dict(dict(tensors)))
    ours = load_adapter(tmp_path / "x.safetensors")
    assert_same({name: delta[:64] for name, delta in dense(ours).items()}, theirs)


def test_diffusers_takes_our_kohya_files_of_flux_apart_as_we_put_them_together():
    torch.manual_seed(0)
    factors = {}
    for band, module, d_out in (
        ("transformer_blocks", "attn.to_q", WIDTH),
        ("transformer_blocks", "attn.to_k", WIDTH),
        ("transformer_blocks", "attn.to_v", WIDTH),
        ("single_transformer_blocks", "attn.to_q", WIDTH),
        ("single_transformer_blocks", "attn.to_k", WIDTH),
        ("single_transformer_blocks", "attn.to_v", WIDTH),
        ("single_transformer_blocks", "proj_mlp", 4 * WIDTH),
        ("single_transformer_blocks", "norm.linear", 3 * WIDTH),
    ):
        factors[f"{band}.0.{module}"] = Factors(torch.randn(1, WIDTH), torch.randn(d_out, 1))
    factors["norm_out.linear"] = Factors(torch.randn(1, WIDTH), torch.randn(2 * WIDTH, 1))
    state = diffusers.FluxKontextPipeline.lora_state_dict(to_file(factors, "kohya"))
    assert len(state) == 2 * len(factors)
    for name, f in factors.items():
        prefix = "" if name == "norm_out.linear" else "transformer."
        B, A = (state[f"{prefix}{name}.lora_{x}.weight"] for x in "BA")
        torch.testing.assert_close(B[:64] @ A, f.B[:64] @ f.A)
