"""Apply Generated LoRA on a real server: beside stock LoRA nodes, after trouble, and its report."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from .graphs import EditGraph, Link, latent
from .server import ComfyServer, Refused
from .test_nodes import gap

pytestmark = pytest.mark.comfyui
NOISE = 1e-4  # of float32 latents up to 9; one LoRA more moves them by over 1e-3


@pytest.fixture
def stock_lora(server) -> str:
    """A LoRA file of whole linears, which stock's bypass nodes take too."""
    graph = EditGraph(prompt="make it darker")
    adapter, _ = graph.adapter()
    saved = graph.save(adapter, "apply/whole", strength=0.7)
    path = server.base / "models" / "loras" / server.run(graph.nodes)[saved]["text"][0]
    tensors = {
        key: tensor for key, tensor in load_file(path).items() if "to_out.0" in key or ".ff.net" in key
    }
    assert tensors
    name = "apply_whole.safetensors"
    save_file(tensors, str(path.parents[1] / name))
    return name


def ours(graph: EditGraph, model: Link) -> Link:
    """The model with the graph's own adapter."""
    return graph.apply(graph.adapter()[0], model)


def stock(graph: EditGraph, model: Link, name: str, node: str = "LoraLoaderModelOnly") -> Link:
    """The model with a file, by one of stock's nodes."""
    return graph.add(node, model=model, lora_name=name, strength_model=1.0)


def sampled(server: ComfyServer, graph: EditGraph, model: Link) -> torch.Tensor:
    return latent(server, graph, graph.sample(model))


@pytest.fixture
def both(server, stock_lora) -> torch.Tensor:
    """The side path over stock's merged file."""
    graph = EditGraph()
    return sampled(server, graph, ours(graph, stock(graph, graph.model, stock_lora)))


def test_stock_nodes_before_and_after_it_make_the_same_sum(server, stock_lora, both):
    graph = EditGraph()
    assert gap(sampled(server, graph, stock(graph, ours(graph, graph.model), stock_lora)), both) <= NOISE
    graph = EditGraph()
    alone = sampled(server, graph, ours(graph, graph.model))
    assert gap(alone, both) > 1e-3
    node = "LoraLoaderBypassModelOnly"
    if node not in server.get("/object_info"):
        return
    for order in ("before", "after"):
        graph = EditGraph()
        if order == "before":
            model = ours(graph, stock(graph, graph.model, stock_lora, node))
        else:
            model = stock(graph, ours(graph, graph.model), stock_lora, node)
        assert gap(sampled(server, graph, model), both) <= NOISE


def test_a_hook_on_the_conditioning_is_one_more_summand(server, stock_lora, both):
    graph = EditGraph()
    hook = graph.add("CreateHookLoraModelOnly", lora_name=stock_lora, strength_model=1.0)
    graph.conditioning = graph.add(
        "ConditioningSetProperties",
        cond_NEW=graph.conditioning,
        strength=1.0,
        set_cond_area="default",
        hooks=hook,
    )
    assert gap(sampled(server, graph, ours(graph, graph.model)), both) <= NOISE


def test_twice_is_twice_the_strength(server):
    graph = EditGraph()
    twice = sampled(server, graph, ours(graph, ours(graph, graph.model)))
    graph = EditGraph()
    adapter, _ = graph.adapter()
    assert gap(sampled(server, graph, graph.apply(adapter, strength=2.0)), twice) <= NOISE


@pytest.mark.parametrize("kind", ["out of memory", "exception"])
def test_nothing_is_left_after_trouble_in_mid_sampling(server, untouched, kind):
    graph = EditGraph(seed=31)
    graph.sample(graph.add("HywuTestTrouble", model=ours(graph, graph.model), kind=kind))
    with pytest.raises(Refused):
        server.run(graph.nodes)
    assert untouched.drawn_again()


def test_it_says_what_it_found_and_what_it_runs(server):
    graph = EditGraph(batch=2, seed=33)
    adapter, _ = graph.adapter()
    model = graph.apply(adapter, branch="positive", end_percent=0.5)
    graph.sample(model)
    found, runs = server.run(graph.nodes)[model[0]]["hywu_report"]
    assert found.startswith("All 38 targets")
    assert "2 LoRAs, one for each image, of rank 4 on the positive branch, from 0% to 50%" in runs
    assert found in server.recent_log()
