"""HY-WU Condition in graphs on a running server: lists, references, hidden states, SigLIP2 from a folder."""

from __future__ import annotations

import shutil

import pytest

from ..conditions.test_siglip2 import save_model
from .encoders import write_hidden_generator, write_siglip2_generator
from .graphs import EditGraph
from .server import Refused

pytestmark = pytest.mark.comfyui


@pytest.fixture
def models(server, world):
    """Generators and an encoder in models/hywu, for one test."""
    folder = server.folder("models", "hywu")
    write_siglip2_generator(folder / "bad_siglip2.safetensors", world, "google/tiny-siglip2")
    write_siglip2_generator(folder / "bad_absent.safetensors", world, "siglip2-that-is-nowhere")
    write_hidden_generator(folder / "bad_hidden.safetensors", world, 512)
    save_model(folder / "tiny-siglip2")
    yield folder
    for file in folder.glob("bad_*"):
        file.unlink()
    shutil.rmtree(folder / "tiny-siglip2")


def reports(server, graph: EditGraph, generator: str = "random_generator.safetensors", **inputs) -> list[str]:
    """What HY-WU Condition and Generate LoRA report of a graph, after the LoRA was saved."""
    loaded = graph.add("HYWU_LoadGenerator", generator_name=generator)
    inputs = {"prompt": graph.prompt, "image": graph.photo} | inputs
    given = {name: value for name, value in inputs.items() if value is not None}
    condition = graph.add("HYWU_Condition", generator=loaded, **given)
    adapter, _ = graph.add("HYWU_GenerateLoRA", outputs=2, generator=loaded, condition=condition)
    graph.save(adapter, "condition/lora", index=-1)
    outputs = server.run(graph.nodes)
    return [outputs[link[0]]["hywu_report"][0] for link in (condition, adapter)]


def test_one_prompt_per_line_and_one_image(server):
    told = reports(server, EditGraph(), prompt="darken it\n\nblur it\ndarken it", one_prompt_per_line=True)
    assert told[0].startswith("3 conditions of")
    assert told[1].startswith("3 LoRAs of rank 4 for 38 targets")


def test_a_list_of_images_is_one_batch(server):
    graph = EditGraph(batch=2)
    images = graph.add("RebatchImages", images=graph.photo, batch_size=1)
    assert reports(server, graph, image=images)[1].startswith("2 LoRAs")


def test_counts_that_do_not_fit_are_refused_in_words(server):
    with pytest.raises(Refused, match=r"2 pictures in image and 3 instructions, which do not fit together"):
        reports(server, EditGraph(batch=2), prompt="a\nb\nc", one_prompt_per_line=True)
    with pytest.raises(Refused, match="looks at a picture; connect an image"):
        reports(server, EditGraph(), image=None)
    graph = EditGraph()
    with pytest.raises(Refused, match="2 reference pictures, but the embedded encoder looks at one"):
        reports(server, graph, image_2=graph.photo)


def test_siglip2_from_the_model_folder(server, models):
    graph = EditGraph(prompt="make it dark")
    told = reports(server, graph, "bad_siglip2.safetensors", image_2=graph.fitted, image_3=graph.photo)
    assert told[0] == "1 condition of 32 tokens and 16 channels"  # 3 x 9 patches, 3 words, <eos>, summary


def test_an_absent_encoder_says_how_to_get_it(server, models):
    with pytest.raises(Refused) as refused:
        reports(server, EditGraph(), "bad_absent.safetensors")
    for words in ("siglip2-that-is-nowhere was not found", str(models), "switch on the download"):
        assert words in str(refused.value)


def test_hidden_states_are_read_without_images(server, models):
    graph = EditGraph(batch=2)
    told = reports(server, graph, "bad_hidden.safetensors", image=None, hidden_states=graph.conditioning)
    assert told[0] == "2 conditions of 32 tokens and 512 channels"
    assert told[1].startswith("2 LoRAs")


def test_hidden_states_where_they_do_not_belong_are_refused_in_words(server, models, world):
    with pytest.raises(Refused, match="This generator reads the last hidden states of its backbone"):
        reports(server, EditGraph(), "bad_hidden.safetensors")
    graph = EditGraph()
    with pytest.raises(Refused, match="not hidden states; disconnect"):
        reports(server, graph, hidden_states=graph.conditioning)
    write_hidden_generator(models / "bad_narrow.safetensors", world, 24)
    for generator, settings, words in (
        ("bad_narrow", {}, "512 channels, but the generator learned with 24"),
        (
            "bad_hidden",
            {"prompt": "a\nb\nc", "one_prompt_per_line": True},
            "3 instructions and 2 hidden states",
        ),
    ):
        graph = EditGraph(batch=2)
        settings |= {"image": None, "hidden_states": graph.conditioning}
        with pytest.raises(Refused, match=words):
            reports(server, graph, f"{generator}.safetensors", **settings)
