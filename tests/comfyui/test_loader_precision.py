"""Load HY-WU Generator: folders as downloaded, and weights of a byte under ComfyUI's model management."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hywu_core.generator import load_generator, quantize_generator, save_generator

from ..generator.releases import Golden
from .graphs import EditGraph
from .inside import measure

pytestmark = pytest.mark.comfyui
PRECISIONS = ["as in the file", "float32", "bfloat16", "int8", "fp8"]


@pytest.fixture(scope="module")
def measured(install, world, tmp_path_factory):
    work = tmp_path_factory.mktemp("loader")
    own = world / "random_generator.safetensors"
    (work / "own.safetensors").write_bytes(own.read_bytes())
    save_generator(work / "quantised.safetensors", quantize_generator(load_generator(own), "int8"))
    Golden("experts").write(work / "released", n_shards=3)
    (work / "below").mkdir()
    Golden("plain").write(work / "below" / "released too", n_shards=1)
    (work / "encoder" / "vision").mkdir(parents=True)
    (work / "encoder" / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    for place in ("encoder", "encoder/vision", "below"):
        save_file({"x": torch.zeros(1)}, work / place / "model.safetensors")
    return measure(install, "loader.py", work)


def test_a_folder_is_listed_once_and_an_encoder_is_not(measured):
    ours = [name for name in measured["names"] if not name.startswith("hywu_embedded")]
    assert sorted(ours) == [
        "below/model.safetensors",
        "below/released too",
        "own.safetensors",
        "quantised.safetensors",
        "released",
    ]


@pytest.mark.parametrize("name", ["released", "own.safetensors"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_moving_leaves_every_precision_as_it_is(measured, name, precision):
    found = measured[f"{name} {precision}"]
    assert found["intact"]
    assert found["repeats"]
    assert found["size"] == found["tensors"]
    stored = "torch.bfloat16" if name == "released" else "torch.float32"
    rest = f"torch.{precision}" if precision in ("float32", "bfloat16") else stored
    assert found["dtype"] == rest
    assert found["fc1"] == {"int8": "torch.int8", "fp8": "torch.float8_e4m3fn"}.get(precision, rest)


def test_a_byte_is_less_than_four(measured):
    size = {precision: measured[f"own.safetensors {precision}"]["size"] for precision in PRECISIONS}
    assert size["int8"] == size["fp8"] < size["float32"] == size["as in the file"]


def test_a_quantised_file_stays_as_it_is(measured):
    assert measured["kept"]


def test_a_replaced_shard_is_loaded_again(measured):
    assert measured["replaced"]


@pytest.mark.parametrize("name", ["encoder", "../outside", "nothing", ""])
def test_what_is_no_generator_is_a_sentence(measured, name):
    assert f"There is no generator {name!r} in models/hywu" in measured[f"refused {name}"]


def test_where_there_is_no_fp8_it_says_so(measured):
    assert "choose int8" in measured["mps"]


def saved(server, **inputs) -> dict[str, torch.Tensor]:
    """What Save Adapter writes of the LoRA of the test's photograph."""
    graph = EditGraph()
    loaded = graph.add("HYWU_LoadGenerator", generator_name="random_generator.safetensors", **inputs)
    condition = graph.add("HYWU_Condition", generator=loaded, image=graph.photo, prompt=graph.prompt)
    adapter, _ = graph.add("HYWU_GenerateLoRA", outputs=2, generator=loaded, condition=condition)
    node = graph.save(adapter, "precision/lora")
    name = server.run(graph.nodes)[node]["text"][0]
    return load_file(server.base / "models" / "loras" / name)


def test_the_precision_is_a_choice_that_old_graphs_need_not_make(server):
    inputs = server.get("/object_info/HYWU_LoadGenerator")["HYWU_LoadGenerator"]["input"]
    assert inputs["optional"]["precision"][1]["options"] == PRECISIONS
    assert inputs["optional"]["precision"][1]["default"] == PRECISIONS[0]
    full, chosen = saved(server), saved(server, precision="as in the file")
    assert full.keys() == chosen.keys()
    assert all(torch.equal(full[name], chosen[name]) for name in full)


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 0.05), ("int8", 0.05), ("fp8", 0.1)])
def test_a_lora_of_fewer_bits_is_nearly_the_same(server, precision, bound):
    full, fewer = saved(server), saved(server, precision=precision)
    stems = {name.removesuffix(".lora_A.weight") for name in full if name.endswith(".lora_A.weight")}

    def updates(lora):
        return torch.cat(
            [
                (lora[f"{s}.lora_B.weight"].float() @ lora[f"{s}.lora_A.weight"].float()).flatten()
                for s in stems
            ]
        )

    exact = updates(full)
    assert 1e-4 < float((updates(fewer) - exact).norm() / exact.norm()) < bound
