"""The workflows of the embedded models, run as they are: each does what its note says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ImageOps

from hywu_core.data.metrics import psnr
from hywu_core.data.photo_ops import OPS
from hywu_core.embedded import GENERATOR
from hywu_core.pipeline import DEFAULT_STEPS

from .conftest import photograph
from .server import ComfyServer, Graph
from .workflows import find_workflow, read_graph

pytestmark = pytest.mark.comfyui
FEW = 2  # steps: enough to compare runs with each other
SAME = 2  # levels of 255: the noise of another batch size, rounded


def workflow(server: ComfyServer, name: str, steps: int = FEW, **how) -> Graph:
    """A workflow with the test photograph in all its Load Image nodes, in fewer steps than it has."""
    graph = read_graph(find_workflow(name), server.get("/object_info"), **how)
    for node in graph.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = "photo.png"
        elif node["class_type"] == "KSampler":
            node["inputs"]["steps"] = steps
    return graph


def of_kind(graph: Graph, kind: str) -> list[str]:
    """The ids of all nodes of a kind, in their order."""
    return [key for key, node in graph.items() if node["class_type"] == kind]


def shown(server: ComfyServer, outputs, node: str, index: int = 0) -> np.ndarray:
    """A picture of a run (H, W, 3), 0 to 255."""
    return np.asarray(server.picture(outputs, node, index)).astype(float)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two pictures, in levels of 255."""
    return float(np.abs(a - b).max())


def test_batch_per_instance_gives_each_row_what_it_would_get_alone(server):
    photos = {
        "photo.png": photograph(),
        "mirrored.png": ImageOps.mirror(photograph()),
        "inverted.png": ImageOps.invert(photograph()),
    }
    graph = workflow(server, "batch_per_instance")
    for key, (name, photo) in zip(of_kind(graph, "LoadImage"), photos.items(), strict=True):
        graph[key]["inputs"]["image"] = server.put_image(name, photo)
    (words,), (batch,) = of_kind(graph, "PrimitiveStringMultiline"), of_kind(graph, "SaveImage")
    lines = graph[words]["inputs"]["value"].splitlines()
    outputs = server.run(graph)
    assert len(outputs[batch]["images"]) == len(lines) == len(photos)

    for row, (name, line) in enumerate(zip(photos, lines, strict=True)):
        alone = workflow(server, "quickstart")
        (photo,), (words,) = of_kind(alone, "LoadImage"), of_kind(alone, "PrimitiveStringMultiline")
        alone[photo]["inputs"]["image"] = name
        alone[words]["inputs"]["value"] = line
        # The noise of this row of a batch: stock nodes name it by its index.
        (sampler,) = of_kind(alone, "KSampler")
        latent = alone[sampler]["inputs"]["latent_image"]
        alone["all"] = {"class_type": "RepeatLatentBatch", "inputs": {"samples": latent, "amount": 3}}
        one = {"samples": ["all", 0], "batch_index": row, "length": 1}
        alone["row"] = {"class_type": "LatentFromBatch", "inputs": one}
        alone[sampler]["inputs"]["latent_image"] = ["row", 0]
        single = shown(server, server.run(alone), of_kind(alone, "SaveImage")[0])
        assert distance(shown(server, outputs, batch, row), single) <= SAME, f"row {row}"


def test_saved_loras_come_back_as_the_same_picture_through_both_loaders(server):
    first = workflow(server, "save_and_reload")
    names = server.run(first)[of_kind(first, "HYWU_SaveAdapter")[0]]["text"]
    assert len(names) == 2

    graph = workflow(server, "save_and_reload", unmute=True)
    for key, name in zip(of_kind(graph, "HYWU_LoadAdapter"), names, strict=True):
        graph[key]["inputs"]["adapter_name"] = name
    graph[of_kind(graph, "LoraLoaderModelOnly")[0]]["inputs"]["lora_name"] = names[0]
    outputs = server.run(graph)
    ours, stock, half = (shown(server, outputs, key) for key in of_kind(graph, "PreviewImage"))
    assert distance(ours, stock) <= SAME
    assert distance(ours, half) > 10 * SAME

    direct = workflow(server, "quickstart")
    (words,) = of_kind(direct, "PrimitiveStringMultiline")
    (lines,) = of_kind(first, "PrimitiveStringMultiline")
    direct[words]["inputs"]["value"] = first[lines]["inputs"]["value"].splitlines()[0]
    generated = shown(server, server.run(direct), of_kind(direct, "SaveImage")[0])
    assert distance(ours, generated) <= SAME


@pytest.mark.newest
@pytest.mark.skipif(not GENERATOR.exists(), reason=f"{GENERATOR.name} is not in this checkout")
def test_opposite_instructions_need_a_lora_each(server):
    graph = workflow(server, "conflict", steps=DEFAULT_STEPS)
    outputs = server.run(graph)
    own, alike = of_kind(graph, "SaveImage")
    (before,) = of_kind(graph, "PreviewImage")

    def image(node: str, row: int = 0) -> torch.Tensor:
        return torch.from_numpy(shown(server, outputs, node, row)).movedim(-1, 0)[None].float() / 255

    for row, op in enumerate(("green_tint", "magenta_tint")):
        exact = OPS[op].apply(image(before))
        with_own, with_average = (psnr(image(node, row), exact).item() for node in (own, alike))
        untouched = psnr(image(before), exact).item()
        assert with_own > untouched + 6, f"{op}: {with_own:.1f} dB, untouched {untouched:.1f}"
        assert with_own > with_average + 3, f"{op}: {with_own:.1f} dB, with the average {with_average:.1f}"
    (inspect,) = of_kind(graph, "HYWU_InspectAdapter")
    assert outputs[inspect]["hywu_report"]
