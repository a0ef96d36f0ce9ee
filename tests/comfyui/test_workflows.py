"""The example workflows: served as templates, fitting the nodes of every ComfyUI, and doing what they say."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from hywu_core.backbones.embedded import EmbeddedBackbone
from hywu_core.data.metrics import psnr
from hywu_core.data.photo_ops import OPS
from hywu_core.embedded import AUTOENCODER, BACKBONE, GENERATOR, ROOT
from hywu_core.embedded.autoencoder import TinyAutoencoder
from hywu_core.embedded.sizing import fit_image
from hywu_core.embedded.text import TEXT_ENCODER, EmbeddedTextEncoder
from hywu_core.generator import load_generator
from hywu_core.images import load_photo
from hywu_core.pipeline import HywuPipeline

from .server import PACK_NAME
from .workflows import WORKFLOWS, find_workflow, oldest_comfyui, read_graph

pytestmark = pytest.mark.comfyui


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_is_served_as_a_template(server, path):
    assert path.stem in server.get("/workflow_templates")[PACK_NAME]
    served = server.get(f"/api/workflow_templates/{PACK_NAME}/{path.name}")
    assert served == json.loads(path.read_text(encoding="utf-8"))
    thumbnail = server.get_bytes(f"/api/workflow_templates/{PACK_NAME}/{path.stem}.jpg")
    assert min(Image.open(io.BytesIO(thumbnail)).size) >= 300


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_fits_the_nodes_of_this_comfyui(server, path):
    if not server.install.at_least(oldest := oldest_comfyui(path)):
        pytest.skip(f"{path.stem} needs ComfyUI {oldest}")
    assert read_graph(path, server.get("/object_info"), unmute=True)


def quickstart(server, instruction: str):
    """The quickstart on the test photograph: the edited picture it saves."""
    graph = read_graph(find_workflow("quickstart"), server.get("/object_info"))
    kinds = {node["class_type"]: node["inputs"] for node in graph.values()}
    kinds["LoadImage"]["image"] = "photo.png"
    kinds["PrimitiveStringMultiline"]["value"] = instruction
    save = next(key for key, node in graph.items() if node["class_type"] == "SaveImage")
    return np.asarray(server.picture(server.run(graph), save)).astype(float)


@pytest.mark.parametrize("instruction", ["make it look like an old faded photograph", "把照片变亮"])
def test_the_quickstart_makes_the_picture_of_the_edit_command(server, instruction):
    def file(path):
        return server.pack / "hywu_core" / "embedded" / path.relative_to(ROOT)

    pipeline = HywuPipeline(
        EmbeddedBackbone.load(file(BACKBONE)),
        TinyAutoencoder.load(file(AUTOENCODER)),
        EmbeddedTextEncoder.load(file(TEXT_ENCODER)),
        load_generator(file(GENERATOR)).eval(),
    )
    edit = pipeline.edit(load_photo(server.folder("input") / "photo.png"), [instruction], seed=0)
    theirs = quickstart(server, instruction)
    ours = (edit.image[0].permute(1, 2, 0) * 255).numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).mean() <= 2
    base = pipeline.edit(edit.source, [instruction], seed=0, frozen_base=True)
    assert (base.image - edit.image).abs().mean() > 1e-3, "the generated LoRA changes nothing"
    assert torch.isfinite(edit.image).all()


@pytest.mark.newest
@pytest.mark.skipif(not GENERATOR.exists(), reason=f"{GENERATOR.name} is not in this checkout")
def test_the_quickstart_does_what_it_is_asked(server):
    source = fit_image(load_photo(server.folder("input") / "photo.png"))
    gains = {}
    for op, instruction in {
        "darken": "it is far too bright, please make it much darker",
        "cyanotype": "print it as a blue cyanotype",
        "black_frame": "put a black frame around the picture",
    }.items():
        exact = OPS[op].apply(source)
        edited = torch.from_numpy(quickstart(server, instruction)).permute(2, 0, 1)[None] / 255
        gains[op] = (psnr(edited, exact) - psnr(source, exact)).item()
    assert sum(gains.values()) / len(gains) >= 4, (
        f"dB nearer to the exact edit than the photograph is: {gains}"
    )
