"""The nodes on a running server: whole graphs over its API, with random weights and exact comparisons."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from .graphs import EditGraph, frozen, latent
from .server import ComfyServer, Refused

pytestmark = pytest.mark.comfyui
SOCKETS = {  # name, inputs in order (optional ones with a question mark), outputs
    "HYWU_LoadGenerator": (
        "Load HY-WU Generator",
        "generator_name:COMBO precision?:COMBO",
        "generator:HYWU_GENERATOR",
    ),
    "HYWU_Condition": (
        "HY-WU Condition",
        "generator:HYWU_GENERATOR prompt:STRING image?:IMAGE image_2?:IMAGE image_3?:IMAGE "
        "hidden_states?:CONDITIONING one_prompt_per_line?:BOOLEAN download?:BOOLEAN",
        "condition:HYWU_CONDITION",
    ),
    "HYWU_GenerateLoRA": (
        "Generate LoRA",
        "generator:HYWU_GENERATOR condition:HYWU_CONDITION max_norm?:FLOAT max_norm_per_target?:FLOAT "
        "max_rank?:INT cache?:COMBO",
        "adapter:HYWU_ADAPTER lora:LORA_MODEL",
    ),
    "HYWU_ApplyLoRA": (
        "Apply Generated LoRA",
        "model:MODEL adapter:HYWU_ADAPTER strength:FLOAT start_percent:FLOAT end_percent:FLOAT branch:COMBO "
        "mode:COMBO negative_adapter?:HYWU_ADAPTER",
        "model:MODEL",
    ),
    "HYWU_SaveAdapter": (
        "Save Adapter",
        "adapter:HYWU_ADAPTER filename_prefix:STRING destination:COMBO format:COMBO strength:FLOAT "
        "dtype:COMBO index:INT include_prompt:BOOLEAN",
        "",
    ),
    "HYWU_LoadAdapter": ("Load Adapter", "adapter_name:COMBO", "adapter:HYWU_ADAPTER"),
    "HYWU_CombineAdapters": (
        "Combine Adapters",
        "adapter_a:HYWU_ADAPTER operation:COMBO amount:FLOAT max_rank:INT adapter_b?:HYWU_ADAPTER",
        "adapter:HYWU_ADAPTER",
    ),
    "HYWU_InspectAdapter": (
        "Inspect Adapter",
        "adapter:HYWU_ADAPTER index:INT other?:HYWU_ADAPTER",
        "heat_map:IMAGE summary:STRING",
    ),
    "HYWU_EmbeddedEncode": (
        "HY-WU Embedded Encode",
        "image:IMAGE prompt:STRING vae:VAE one_prompt_per_line?:BOOLEAN",
        "conditioning:CONDITIONING latent:LATENT image:IMAGE",
    ),
}


def applied(
    server: ComfyServer, generator: str = "random_generator.safetensors", strength: float = 1.0, **settings
) -> torch.Tensor:
    """The graph with Apply Generated LoRA."""
    graph = EditGraph(**settings)
    adapter, _ = graph.adapter(generator)
    return latent(server, graph, graph.sample(graph.apply(adapter, strength=strength)))


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference."""
    return (a - b).abs().max().item()


def test_all_nodes_are_there_with_their_sockets(server):
    nodes = server.get("/object_info")
    for key, (name, inputs, outputs) in SOCKETS.items():
        node = nodes[key]
        assert node["display_name"] == name
        found = [
            f"{socket}{mark}:{'COMBO' if isinstance(kind, list) else kind}"
            for group, mark in (("required", ""), ("optional", "?"))
            for socket, (kind, *_) in node["input"].get(group, {}).items()
        ]
        assert " ".join(found) == inputs
        assert " ".join(map(":".join, zip(node["output_name"], node["output"], strict=True))) == outputs
        assert node["category"] == "HY-WU"
    assert {key for key in nodes if key.startswith("HYWU_")} == SOCKETS.keys()
    assert "IMPORT FAILED" not in server.log()
    assert "comfy_entrypoint" not in server.log()


def test_it_lists_generators_of_its_model_folder(server):
    combo = server.get("/object_info/HYWU_LoadGenerator")["HYWU_LoadGenerator"]["input"]["required"]
    assert "random_generator.safetensors" in combo["generator_name"][1]["options"]


@pytest.mark.parametrize("strength", [1.0, -0.6])
def test_apply_equals_the_stock_loader_of_the_saved_adapter(server, strength):
    ours = applied(server, strength=strength)
    assert gap(ours, frozen(server)) > 0.05

    graph = EditGraph()
    adapter, _ = graph.adapter()
    saved = graph.save(adapter, "stock/lora", strength=strength)
    name = server.run(graph.nodes)[saved]["text"][0]

    graph = EditGraph()
    model = graph.add("LoraLoaderModelOnly", model=graph.model, lora_name=name, strength_model=1.0)
    assert gap(ours, latent(server, graph, graph.sample(model))) <= 1e-5
    assert "lora key not loaded" not in server.recent_log()


def test_lora_output_merges_through_the_core_node(server):
    graph = EditGraph()
    _, lora = graph.adapter()
    model = graph.add("LoraModelLoader", model=graph.model, lora=lora, strength_model=1.0, bypass=False)
    assert gap(applied(server), latent(server, graph, graph.sample(model))) <= 1e-5
    assert "lora key not loaded" not in server.recent_log()


def test_lora_output_is_saved_by_the_core_node(server):
    graph = EditGraph(batch=2)
    _, lora = graph.adapter()
    kind = "SaveLoRA" if "SaveLoRA" in server.get("/object_info") else "SaveLoRANode"
    graph.add(kind, outputs=0, lora=lora, prefix="core/lora")
    server.run(graph.nodes)
    file = server.base / "output" / "core" / "lora_00001_.safetensors"
    saved = load_file(file)
    assert len(saved) == 2 * 38
    assert all(tensor.dim() == 2 for tensor in saved.values())
    assert file.stat().st_size < sum(4 * tensor.numel() for tensor in saved.values()) + 20_000


def test_a_run_without_it_is_bit_identical_to_a_fresh_servers(server, untouched):
    applied(server, seed=11)
    assert untouched.drawn_again()


def test_nothing_is_left_after_a_cancel_in_mid_sampling(server, untouched):
    graph = EditGraph(steps=1000)
    adapter, _ = graph.adapter()
    graph.sample(graph.apply(adapter))
    queued = server.queue(graph.nodes)
    server.wait_for_log(r"\b[1-9]\d*/1000")  # any step: a fast sampler does not print every one
    server.post("/interrupt", {})
    with pytest.raises(Refused, match="interrupted"):
        server.wait(queued)
    assert untouched.drawn_again()


def test_a_fresh_generator_and_strength_zero_change_no_bit(server):
    base = frozen(server)
    assert torch.equal(applied(server, "fresh_generator.safetensors"), base)
    assert torch.equal(applied(server, strength=0.0), base)


def test_a_batch_has_a_lora_for_each_image_in_both_branches(server):
    together = applied(server, batch=2, cfg=2.0)
    assert gap(together[:1], applied(server, cfg=2.0)) <= 1e-5
    assert gap(together[1:], together[:1]) > 0.05


@pytest.fixture
def generators(server, world):
    """Where generator files go, and a good one to spoil."""
    yield server.folder("models", "hywu"), world / "random_generator.safetensors"
    for file in server.folder("models", "hywu").glob("bad_*"):
        file.unlink()


def test_bad_generator_files_are_refused_in_words(server, generators):
    folder, good = generators
    (folder / "bad_text.safetensors").write_text("this is not a generator")
    (folder / "bad_half.safetensors").write_bytes(good.read_bytes()[:5000])
    save_file({"x": torch.zeros(2)}, str(folder / "bad_foreign.safetensors"))
    for name, words in (
        ("bad_text", "not a complete safetensors file"),
        ("bad_half", "not a complete safetensors file"),
        ("bad_foreign", "not a HY-WU generator"),
    ):
        with pytest.raises(Refused, match=words):
            applied(server, f"{name}.safetensors")


def test_a_generator_of_an_unknown_encoder_is_refused_in_words(server, generators, world):
    from hywu_core import LoraSpec

    from . import tiny

    folder, _ = generators
    spec = LoraSpec.from_module(world.backbone.transformer, rank=tiny.RANK, alpha=tiny.RANK)
    tiny.write_generator(folder / "bad_encoder.safetensors", spec, encoder="telepathy")
    with pytest.raises(Refused, match="conditions of the encoder 'telepathy'"):
        applied(server, "bad_encoder.safetensors")


def test_a_replaced_generator_file_is_read_again(server, generators, world):
    folder, good = generators
    shutil.copy(good, folder / "bad_replaced.safetensors")
    first = applied(server, "bad_replaced.safetensors")
    shutil.copy(world / "fresh_generator.safetensors", folder / "bad_replaced.safetensors")
    assert gap(applied(server, "bad_replaced.safetensors"), first) > 0.05


def test_an_empty_instruction_is_refused_in_words(server):
    with pytest.raises(Refused, match="The instruction is empty"):
        applied(server, prompt="   ")
