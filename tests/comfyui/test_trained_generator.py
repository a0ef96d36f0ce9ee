"""From somebody's photographs to edited latents: trained by the command, run by ComfyUI on the same weights.

What ComfyUI samples must be what the library samples with the same generator, weights, times and noise. All
of it is in float32, on a CPU by ComfyUI's own choice, so that only the order of additions differs.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from hywu_core.backbones.packing import PATCH

from ..backbones.tiny_folders import write_flux_kontext, write_qwen_image_edit
from ..conditions.test_siglip2 import save_model
from .graphs import AdaptedGraph, Link
from .server import ComfyServer
from .trained import SEED, Trained

pytestmark = pytest.mark.comfyui

INDEX = 1  # of the edit
STEPS = 2
GUIDANCE = 2.5
SAME = 1e-5  # relative difference of latents; 2e-7 were found
SEEN = 100 * SAME  # what the LoRA must change at least
PIXELS = 8  # to a latent
STRONG = ("--set", "alpha=16")  # four times the rank: few steps are seen, and the scale is not 1


@pytest.fixture(scope="session")
def kontext(tmp_path_factory) -> Trained:
    """Distilled guidance, two pictures an edit; a SigLIP2 is the generator's encoder."""
    root = tmp_path_factory.mktemp("kontext")
    backbone = write_flux_kontext(root / "trained_kontext", heads=2, n_double=2, n_single=2)
    encoder = save_model(root / "siglip2-trained")
    return Trained.on_own_data(root, "flux_kontext", backbone, encoder, "--steps", 4, *STRONG)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory) -> Trained:
    """One block of the only width that ComfyUI knows; the generator reads the backbone's own text.

    Qwen2.5-VL looks at the pictures from afar, which makes its text, and so the test, a quarter as long.
    """
    root = tmp_path_factory.mktemp("qwen")
    backbone = write_qwen_image_edit(root / "trained_qwen", heads=24, text_dim=3584, dtype=torch.bfloat16)
    few = "targets=transformer_blocks.*.attn.*,transformer_blocks.*.txt_mlp.net.2"
    more = ("--steps", 2, "--batch-size", 1, "--set", few, *STRONG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plus, "CONDITION_IMAGE_SIZE", 64 * 64)
        return Trained.on_own_data(root, "qwen_image_edit", backbone, "backbone", *more)


@pytest.fixture(params=["kontext", pytest.param("qwen", marks=pytest.mark.newest)])
def trained(request: pytest.FixtureRequest) -> Trained:
    """Each of them."""
    return request.getfixturevalue(request.param)


def put_models(server: ComfyServer, trained: Trained) -> None:
    """Generator, its encoder and the backbone's weights into the server's model folders, once."""
    weights = trained.backbone_folder / "transformer" / "diffusion_pytorch_model.safetensors"
    for file, kind in ((weights, "diffusion_models"), (trained.generator, "hywu")):
        if not (place := server.folder("models", kind) / trained.file).exists():
            shutil.copy(file, place)
    if (encoder := Path(trained.settings["encoder"])).is_dir():
        shutil.copytree(encoder, server.folder("models", "hywu") / encoder.name, dirs_exist_ok=True)


@dataclass(kw_only=True)
class TrainedGraph(AdaptedGraph):
    """Load HY-WU Generator to KSampler around one edit of the data set."""

    server: ComfyServer
    trained: Trained
    seed: int = SEED
    steps: int = STEPS

    def __post_init__(self) -> None:
        trained, file = self.trained, self.trained.file
        put_models(self.server, trained)
        inputs, noise = trained.inputs(INDEX), trained.noise(INDEX)
        controls = {f"control_{number}": latent for number, latent in enumerate(inputs.controls)}
        save_file({**inputs.text, **controls, "noise": noise}, self.server.folder("input") / file)
        self.unet = self.model = self.add("UNETLoader", unet_name=file, weight_dtype="default")
        self.conditioning, self.latent = self.add("HywuTestReadEdit", outputs=2, model=self.unet, file=file)
        self.prepare(*(side * PIXELS for side in noise.shape[-2:]))
        self.generator = self.add("HYWU_LoadGenerator", generator_name=file, precision="float32")

    def prepare(self, height: int, width: int) -> None:
        """What users of the model put between it and the sampler."""
        if self.trained.backbone.kind == "flux_kontext":
            size = {"width": width, "height": height}
            self.model = self.add(
                "ModelSamplingFlux", model=self.unet, max_shift=1.15, base_shift=0.5, **size
            )
            self.conditioning = self.add("FluxGuidance", conditioning=self.conditioning, guidance=GUIDANCE)
        else:
            self.model = self.add("ModelSamplingAuraFlow", model=self.unet, shift=3.1)

    def condition(self) -> Link:
        """HY-WU Condition of the edit's own pictures and words, or of its hidden states."""
        sample = self.trained.sample(INDEX)
        words = {"generator": self.generator, "prompt": sample.prompt}
        if self.trained.settings["encoder"] == "backbone":
            return self.add("HYWU_Condition", hidden_states=self.conditioning, **words)
        pictures = {}
        for name, control in zip(("image", "image_2"), sample.controls, strict=True):
            file = self.server.put_image(f"trained_{name}.png", Image.open(control.path))
            pictures[name] = self.add("LoadImage", outputs=2, image=file)[0]
        return self.add("HYWU_Condition", **words, **pictures)

    def adapter(self) -> Link:
        """The LoRA of this edit."""
        inputs = {"generator": self.generator, "condition": self.condition()}
        return self.add("HYWU_GenerateLoRA", outputs=2, **inputs)[0]

    def write(self, name: str, **what: Link) -> None:
        """Have tensors of the run written to a file, for `read`."""
        self.add("HywuTestWriteTensors", outputs=0, model=self.model, file=f"{name}.safetensors", **what)

    def write_times(self) -> None:
        """Have the times that KSampler samples at written, for `read`."""
        times = {"model": self.model, "scheduler": "simple", "steps": self.steps, "denoise": 1.0}
        self.write("times", sigmas=self.add("BasicScheduler", **times))

    def run(self) -> dict[str, Any]:
        """What the nodes said."""
        return self.server.run(self.nodes)

    def read(self, name: str) -> dict[str, Tensor]:
        """What `write` has written."""
        return load_file(self.server.base / "output" / f"{name}.safetensors")


def distance(one: Tensor, other: Tensor) -> float:
    """Relative, of latents (1, Z, h, w) or of a film (1, Z, 1, h, w)."""
    return float((one.flatten() - other.flatten()).norm() / other.norm())


def test_a_condition_in_comfyui_is_the_one_it_was_trained_with(server, trained):
    graph = TrainedGraph(server=server, trained=trained)
    graph.write("condition", condition=graph.condition())
    graph.run()
    tokens, expected = graph.read("condition")["tokens"], trained.encoded(INDEX).condition
    assert expected.mask is None
    assert tokens.shape == expected.tokens.shape
    assert (tokens - expected.tokens).abs().max() <= 1e-5 * expected.tokens.abs().max()


def test_comfyui_samples_what_the_library_samples(server, trained):
    graph = TrainedGraph(server=server, trained=trained)
    adapter = graph.adapter()
    graph.write("adapted", samples=graph.sampled(graph.apply(adapter)))
    graph.write("frozen", samples=graph.sampled(graph.model))
    graph.write_times()
    saved = graph.save(adapter, "trained/x", dtype="float32")
    name = graph.run()[saved]["text"][0]
    sigmas = graph.read("times")["sigmas"].tolist()
    frozen, adapted = (trained.edited(INDEX, sigmas, GUIDANCE, lora) for lora in (False, True))
    assert distance(adapted, frozen) > SEEN
    assert distance(trained.edited(INDEX, sigmas, GUIDANCE, False, turned=True), frozen) > 10 * SAME
    assert distance(graph.read("frozen")["latent"], frozen) <= SAME
    assert distance(graph.read("adapted")["latent"], adapted) <= SAME

    graph = TrainedGraph(server=server, trained=trained)
    model = graph.add("LoraLoaderModelOnly", model=graph.model, lora_name=name, strength_model=1.0)
    graph.write("stock", samples=graph.sampled(model))
    graph.run()
    assert distance(graph.read("stock")["latent"], adapted) <= SAME
    assert "lora key not loaded" not in server.recent_log()


def test_modelsamplingflux_has_the_times_that_the_library_samples_at(server, kontext):
    graph = TrainedGraph(server=server, trained=kontext)
    graph.write_times()
    graph.run()
    n_tokens = kontext.noise(INDEX)[0, 0].numel() // PATCH**2
    expected = kontext.backbone.schedule.sigmas(STEPS, n_tokens)
    assert graph.read("times")["sigmas"].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.newest
def test_edit_model_reference_method_makes_a_2511_of_a_qwen(server, qwen, monkeypatch):
    graph = TrainedGraph(server=server, trained=qwen)
    graph.conditioning = graph.add(
        "FluxKontextMultiReferenceLatentMethod",
        conditioning=graph.conditioning,
        reference_latents_method="index_timestep_zero",
    )
    graph.write("of_2511", samples=graph.sampled(graph.model))
    graph.write_times()
    graph.run()
    sigmas = graph.read("times")["sigmas"].tolist()
    of_2509 = qwen.edited(INDEX, sigmas, GUIDANCE, adapted=False)
    for module in qwen.backbone.transformer.modules():
        if hasattr(module, "zero_cond_t"):
            monkeypatch.setattr(module, "zero_cond_t", True)
    of_2511 = qwen.edited(INDEX, sigmas, GUIDANCE, adapted=False)
    assert distance(of_2511, of_2509) > 10 * SAME
    assert distance(graph.read("of_2511")["latent"], of_2511) <= SAME
