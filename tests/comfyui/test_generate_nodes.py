"""Generate LoRA in graphs on a running server: kept across restarts, bounded, shown, cancelled."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load, load_file

from .graphs import EditGraph
from .server import ComfyServer, Refused

pytestmark = pytest.mark.comfyui


def generated(server: ComfyServer, prompt: str = "make it brighter", batch: int = 1, **settings) -> dict:
    """Everything Generate LoRA tells the interface about one run."""
    graph = EditGraph(prompt=prompt, batch=batch)
    loaded = graph.add("HYWU_LoadGenerator", generator_name="random_generator.safetensors")
    condition = graph.add("HYWU_Condition", generator=loaded, image=graph.photo, prompt=prompt)
    adapter, _ = graph.add("HYWU_GenerateLoRA", outputs=2, generator=loaded, condition=condition, **settings)
    graph.save(adapter, "generate/lora")
    return server.run(graph.nodes)[adapter[0]]


def heat_maps(shown: dict) -> list[dict]:
    """The tables that a run sends to the interface."""
    return [json.loads(table) for table in shown["hywu_heat_map"]]


def test_bounds_are_reported_and_cost_no_generation(server):
    free = generated(server, "bounds")
    largest = heat_maps(free)[0]["total"]
    bounded = generated(server, "bounds", max_norm=largest / 4, max_rank=2)
    first, rank, norm = bounded["hywu_report"]
    assert first.endswith("0 generated, 1 from the cache")
    assert rank.startswith("max_rank 2: rank 4 -> 2, which keeps ")
    assert f"-> {largest / 4:.4g}, 38 of 38 targets made smaller" in norm
    assert heat_maps(bounded)[0]["total"] == pytest.approx(largest / 4, rel=1e-3)
    assert norm in server.recent_log()


def test_every_lora_of_a_batch_has_its_heat_map(server):
    maps = heat_maps(generated(server, "maps", batch=2))
    assert [(table["index"], table["batch"]) for table in maps] == [(0, 2), (1, 2)]
    assert maps[0]["total"] != maps[1]["total"]


def test_a_batch_with_more_loras_than_heat_maps_says_where_the_others_are_shown(server):
    told = "Heat maps of the first 8; Inspect Adapter shows the others"
    for doubled, loras in ((4, 8), (5, 16)):  # each further picture of this graph doubles its batch
        shown = generated(server, "many", batch=doubled)
        maps = heat_maps(shown)
        assert [(table["index"], table["batch"]) for table in maps] == [(i, loras) for i in range(8)]
        assert (shown["hywu_report"][-1] == told) == (loras > 8)


def test_disk_survives_a_restart_and_memory_does_not(server):
    folder = server.base / "user" / "__hywu_cache"
    assert "1 generated" in generated(server, "on disk", cache="memory and disk")["hywu_report"][0]
    good = set(folder.iterdir())
    assert "1 generated" in generated(server, "damaged", cache="memory and disk")["hywu_report"][0]
    (damaged,) = set(folder.iterdir()) - good
    assert "1 generated" in generated(server, "in memory")["hywu_report"][0]
    assert set(folder.iterdir()) == {damaged, *good}
    whole = damaged.read_bytes()
    server.stop()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    server.start()
    server.mark_log()
    assert "0 generated, 1 from" in generated(server, "on disk", cache="memory and disk")["hywu_report"][0]
    assert "1 generated, 0 from" in generated(server, "in memory")["hywu_report"][0]
    assert "1 generated, 0 from" in generated(server, "damaged", cache="memory and disk")["hywu_report"][0]
    assert "is damaged and is generated again" in server.recent_log()
    before, after = load(whole), load_file(damaged)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_cancel_stops_it_and_the_next_graph_runs(server):
    many = "\n".join(f"instruction number {i}" for i in range(400))
    graph = EditGraph()
    loaded = graph.add("HYWU_LoadGenerator", generator_name="random_generator.safetensors")
    condition = graph.add(
        "HYWU_Condition", generator=loaded, image=graph.photo, prompt=many, one_prompt_per_line=True
    )
    adapter, _ = graph.add("HYWU_GenerateLoRA", outputs=2, generator=loaded, condition=condition, cache="off")
    graph.save(adapter, "generate/never")
    queued = server.queue(graph.nodes)
    server.wait_for_log("Generate LoRA: 400 conditions")
    server.post("/interrupt", {})
    with pytest.raises(Refused, match="interrupted"):
        server.wait(queued)
    assert "400 LoRAs" not in server.recent_log()
    assert not list(server.folder("models", "loras", "generate").glob("never*"))
    assert generated(server, "after the cancel")["hywu_report"][0].startswith("1 LoRA of rank 4")
