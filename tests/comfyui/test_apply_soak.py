"""A hundred prompts with a hundred adapters on a real server: memory and loaded models stay level."""

from __future__ import annotations

import statistics

import pytest

from .graphs import EditGraph

pytestmark = pytest.mark.comfyui
PROMPTS = 100
MEGABYTE = 1e6
# Between the parts that are compared lie fifty adapters, 26 MB; what malloc keeps moves by a few.
TOLERANCE = 15 * MEGABYTE


def holdings(server, number: int) -> dict[str, list]:
    graph = EditGraph(steps=1)
    loaded = graph.add("HYWU_LoadGenerator", generator_name="random_generator.safetensors")
    condition = graph.add("HYWU_Condition", generator=loaded, image=graph.photo, prompt=f"request {number}")
    # Without the cache, whose size is bounded but not reached by a test.
    generated = graph.add("HYWU_GenerateLoRA", outputs=2, generator=loaded, condition=condition, cache="off")
    graph.sample(graph.apply(generated[0], mode="side path"))
    sampler = next(key for key, node in graph.nodes.items() if node["class_type"] == "KSampler")
    asked = graph.add("HywuTestHoldings", outputs=0, samples=[sampler, 0])
    return server.run(graph.nodes)[asked]


def test_a_hundred_adapters_leave_memory_and_loaded_models_level(server):
    seen = [holdings(server, number) for number in range(PROMPTS)]
    for what in ("rss", "vram"):
        first, last = (
            statistics.median(seen[i][what][0] for i in part) for part in (range(25, 50), range(75, 100))
        )
        assert last - first <= TOLERANCE, f"{what}: {first / MEGABYTE:.1f} MB, then {last / MEGABYTE:.1f} MB"
    assert len(seen[-1]["loaded"]) <= len(seen[20]["loaded"])
    assert seen[-1]["loaded"].count("SidePaths") <= 1
    assert "memory leak" not in server.recent_log().lower()
