"""Saving, loading and combining adapters on a running server: real files in real folders."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hywu_core import load_adapter

from .graphs import EditGraph
from .server import ComfyServer, Refused

pytestmark = pytest.mark.comfyui


def saved(server: ComfyServer, prefix: str, batch: int = 1, **settings) -> list[str]:
    """Save the generated adapters of one graph; the names the node shows."""
    graph = EditGraph(batch=batch)
    adapter, _ = graph.adapter()
    node = graph.save(adapter, prefix, **settings)
    return server.run(graph.nodes)[node]["text"]


def lists(server: ComfyServer, node: str, widget: str) -> list[str]:
    """What a node's menu offers."""
    kind, *rest = server.get(f"/object_info/{node}")[node]["input"]["required"][widget]
    return kind if isinstance(kind, list) else rest[0]["options"]


def test_saved_adapters_are_numbered_and_say_where_they_came_from(server):
    names = [saved(server, "numbered/x", strength=0.5, dtype=d)[0] for d in ("float16", "bfloat16")]
    assert names == ["numbered/x_00001_.safetensors", "numbered/x_00002_.safetensors"]
    with safe_open(server.folder("models", "loras") / names[0], "pt") as file:
        metadata = file.metadata()
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    assert metadata["hywu.base"] == "random tiny FLUX Kontext"
    assert metadata["hywu.strength"] == "0.5"
    assert len(metadata["hywu.condition_sha256"]) == 64
    assert "make it brighter" not in str(metadata)


def test_the_instruction_is_in_the_file_when_asked(server):
    (name,) = saved(server, "told/x", include_prompt=True)
    with safe_open(server.folder("models", "loras") / name, "pt") as file:
        assert file.metadata()["hywu.prompt"] == "make it brighter"


def test_a_saved_file_is_at_once_in_the_menus_of_the_loaders(server):
    for prefix in ("fresh", "new/folder/x"):
        (name,) = saved(server, prefix)
        for node, widget in (("LoraLoader", "lora_name"), ("HYWU_LoadAdapter", "adapter_name")):
            assert name in [offered.replace("\\", "/") for offered in lists(server, node, widget)]


def test_every_lora_of_a_batch_becomes_a_file_of_its_own(server):
    names = saved(server, "each/x", batch=2, index=-1)
    assert names == [f"each/x_{n:05}_.safetensors" for n in (1, 2)]
    first, second = (load_adapter(server.folder("models", "loras") / name) for name in names)
    assert any(not torch.equal(first[n][1], second[n][1]) for n in first)
    assert first.batch == second.batch == 1
    (again,) = saved(server, "each/again", batch=2, index=1)
    third = load_adapter(server.folder("models", "loras") / again)
    assert all(torch.equal(third[n][i], second[n][i]) for n in third for i in (0, 1))


def test_a_batch_is_saved_as_a_whole_or_not_at_all(server):
    graph = EditGraph()
    adapter, _ = graph.adapter()
    large = adapter
    for _ in range(8):
        large = graph.add("HYWU_CombineAdapters", adapter_a=large, operation="scale", amount=10.0, max_rank=0)
    both = graph.add(
        "HYWU_CombineAdapters",
        adapter_a=adapter,
        adapter_b=large,
        operation="batch",
        amount=1.0,
        max_rank=0,
    )
    graph.save(both, "whole/x", index=-1, dtype="float16", strength=2.0)
    with pytest.raises(Refused, match="LoRA 1: At strength 2 the LoRA has values beyond what float16 can"):
        server.run(graph.nodes)
    assert not list(server.folder("models", "loras").glob("whole*"))


def test_the_output_folder_and_peft_folders(server):
    (name,) = saved(server, "hywu/x", destination="output", format="PEFT folder")
    assert name == "hywu/x_00001_"
    folder = server.base / "output" / name
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    (file,) = saved(server, "hywu/x", destination="output")
    assert file == "hywu/x_00002_.safetensors"
    one, other = load_adapter(folder), load_adapter(server.base / "output" / file)
    assert all(torch.equal(one[n][i], other[n][i]) for n in other for i in (0, 1))


def test_the_lora_output_is_the_saved_file_tensor_by_tensor(server):
    graph = EditGraph()
    adapter, lora = graph.adapter()
    ours = graph.save(adapter, "same/x")
    kind = "SaveLoRA" if "SaveLoRA" in server.get("/object_info") else "SaveLoRANode"
    graph.add(kind, outputs=0, lora=lora, prefix="same/core")
    name = server.run(graph.nodes)[ours]["text"][0]
    one = load_file(server.folder("models", "loras") / name)
    other = load_file(server.base / "output" / "same" / "core_00001_.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def combined(server: ComfyServer, names: list[str], **settings) -> tuple[str, list[str]]:
    """Load one or two files, combine, save: the name of the result, and what the node said."""
    graph = EditGraph()
    loaded = [graph.add("HYWU_LoadAdapter", adapter_name=name) for name in names]
    inputs = dict(zip(("adapter_a", "adapter_b"), loaded, strict=False))
    usual = {"operation": "interpolate", "amount": 0.5, "max_rank": 0}
    result = graph.add("HYWU_CombineAdapters", **inputs, **(usual | settings))
    node = graph.save(result, "combined/x", index=-1)
    outputs = server.run(graph.nodes)
    return outputs[node]["text"], outputs[result[0]]["hywu_report"]


def dense(server: ComfyServer, name: str) -> dict[str, torch.Tensor]:
    adapter = load_adapter(server.folder("models", "loras") / name)
    return {n: adapter.scale * B[0] @ A[0] for n, (A, B) in adapter.items()}


def test_loaded_adapters_combine_and_come_back(server):
    a, b = saved(server, "pair/x", batch=2, index=-1)
    one, two = dense(server, a), dense(server, b)
    (mixed,), report = combined(server, [a, b], amount=0.25)
    for name, delta in dense(server, mixed).items():
        torch.testing.assert_close(delta, 0.75 * one[name] + 0.25 * two[name], rtol=1e-4, atol=1e-4)
    assert report[0].startswith("interpolate: 1 of rank 8, from rank 4 and 4")
    (short,), _ = combined(server, [a, b], operation="add", max_rank=3)
    assert load_adapter(server.folder("models", "loras") / short).rank == 3
    both, _ = combined(server, [a, b], operation="batch")
    assert all(
        torch.equal(dense(server, f)[n], d[n]) for f, d in zip(both, (one, two), strict=True) for n in d
    )
    with pytest.raises(Refused, match="'add' needs two adapters"):
        combined(server, [a], operation="add")


def sampled(server: ComfyServer, graph: EditGraph, model: list) -> torch.Tensor:
    node = graph.sample(model)
    file = server.run(graph.nodes)[node]["latents"][0]
    return load_file(server.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


def test_a_loaded_adapter_acts_like_the_generated_one_and_like_stock(server):
    (name,) = saved(server, "acts/x", strength=0.8)
    results = []
    graph = EditGraph()
    adapter, _ = graph.adapter()
    results.append(sampled(server, graph, graph.apply(adapter, strength=0.8)))
    graph = EditGraph()
    loaded = graph.add("HYWU_LoadAdapter", adapter_name=name)
    results.append(sampled(server, graph, graph.apply(loaded)))
    graph = EditGraph()
    model = graph.add("LoraLoaderModelOnly", model=graph.model, lora_name=name, strength_model=1.0)
    results.append(sampled(server, graph, model))
    for other in results[1:]:
        assert (other - results[0]).abs().max() <= 1e-5
    graph = EditGraph()
    assert (sampled(server, graph, graph.model) - results[0]).abs().max() > 0.05


def test_a_replaced_lora_file_is_read_again(server):
    a, b = saved(server, "replaced/x", batch=2, index=-1)
    folder = server.folder("models", "loras")
    first, _ = combined(server, [a], operation="scale", amount=1.0)
    (folder / a).write_bytes((folder / b).read_bytes())
    again, _ = combined(server, [a], operation="scale", amount=1.0)
    assert again != first
    expected = dense(server, b)
    assert all(torch.equal(delta, expected[n]) for n, delta in dense(server, again[0]).items())


def test_what_a_file_has_for_text_encoders_is_told(server):
    (name,) = saved(server, "told/both")
    file = server.folder("models", "loras") / name
    save_file(
        load_file(file) | {f"lora_te1_x.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")},
        str(file),
    )
    assert "Left out 2 tensors for text encoders" in told_on_loading(server, name)[1]


def test_a_file_that_takes_more_memory_by_its_largest_rank_is_told(server):
    (name,) = saved(server, "told/mixed")
    file = server.folder("models", "loras") / name
    tensors = load_file(file)
    for key in list(tensors)[:2]:  # A and B of one
        rank_axis = 0 if ".lora_A." in key else 1
        tensors[key] = torch.cat([tensors[key]] * 16, dim=rank_axis).contiguous()
    save_file(tensors, str(file))
    assert "different ranks; with all of them filled up to 64" in told_on_loading(server, name)[1]


def told_on_loading(server: ComfyServer, name: str) -> list[str]:
    graph = EditGraph()
    loaded = graph.add("HYWU_LoadAdapter", adapter_name=name)
    graph.save(loaded, "told/again")
    return server.run(graph.nodes)[loaded[0]]["hywu_report"]


def test_files_that_are_no_lora_are_refused_in_words(server):
    folder = server.folder("models", "loras", "bad")
    (folder / "text.safetensors").write_text("no LoRA")
    save_file({"model.weight": torch.zeros(2)}, str(folder / "model.safetensors"))
    save_file({"x.hada_w1_a": torch.zeros(2, 2)}, str(folder / "loha.safetensors"))
    (folder / "pickle.pt").write_bytes(b"")
    offered = [name.replace("\\", "/") for name in lists(server, "HYWU_LoadAdapter", "adapter_name")]
    assert "bad/pickle.pt" not in offered
    for name, words in (
        ("text", "not a complete safetensors file"),
        ("model", "not part of a plain LoRA"),
        ("loha", "is a LoHa"),
    ):
        with pytest.raises(Refused, match=words):
            combined(
                server, [next(o for o in lists(server, "HYWU_LoadAdapter", "adapter_name") if name in o)]
            )


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("../../escaped", "is not a file name inside"),
        ("", "is not a file name inside"),
        ("/tmp/escaped", "is not a file name inside"),
        ("loras/../../../escaped", "is not a file name inside"),
        ("C:/escaped", "Windows refuses"),
    ],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(server, prefix, words):
    graph = EditGraph()
    adapter, _ = graph.adapter()
    node = graph.save(adapter, prefix)
    with pytest.raises(Refused, match=words) as refused:
        server.run(graph.nodes)
    assert refused.value.node == node
    assert not list(server.base.rglob("escaped*"))


def test_an_index_beyond_the_batch_is_refused_and_leaves_nothing(server):
    with pytest.raises(Refused, match="3 was asked for, but the batch has only 1"):
        saved(server, "beyond/x", index=3)
    assert not list(server.folder("models", "loras", "beyond").iterdir())
