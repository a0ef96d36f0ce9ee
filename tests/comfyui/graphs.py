"""Graphs in ComfyUI's API format, built link by link."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .server import ComfyServer, Graph

Link = list


@dataclass
class Builder:
    """Adds nodes to a graph: `add` returns the links of a node's outputs."""

    nodes: Graph = field(default_factory=dict)

    def add(self, class_type: str, outputs: int = 1, **inputs: Any) -> Any:
        """Add a node; the link of its output, a list of links if it has several, its id if it has none."""
        key = str(len(self.nodes) + 1)
        self.nodes[key] = {"class_type": class_type, "inputs": inputs}
        links: list[Link] = [[key, slot] for slot in range(outputs)]
        return links[0] if outputs == 1 else links or key


@dataclass
class AdaptedGraph(Builder):
    """A model with an adapter beside it, sampled; heirs set `model`, `conditioning` and `latent`."""

    cfg: float = 1.0
    seed: int = 7
    steps: int = 3

    def save(self, adapter: Link, prefix: str, **settings: Any) -> str:
        """Save an adapter; the id of the node, whose "text" are the names."""
        usual = {"destination": "loras", "format": "LoRA file", "strength": 1.0, "dtype": "as generated"}
        usual |= {"index": 0, "include_prompt": False, "filename_prefix": prefix}
        return self.add("HYWU_SaveAdapter", outputs=0, adapter=adapter, **(usual | settings))

    def apply(self, adapter: Link, model: Link | None = None, **settings: Any) -> Link:
        """The model, or another one, with an adapter beside it."""
        usual = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "branch": "both", "mode": "auto"}
        return self.add("HYWU_ApplyLoRA", model=model or self.model, adapter=adapter, **(usual | settings))

    def sampled(self, model: Link) -> Link:
        """The latents that KSampler makes with this model."""
        return self.add(
            "KSampler",
            model=model,
            positive=self.conditioning,
            negative=self.conditioning,
            latent_image=self.latent,
            seed=self.seed,
            steps=self.steps,
            cfg=self.cfg,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        )


@dataclass
class EditGraph(AdaptedGraph):
    """The embedded edit: load, encode, sample; a test says what happens to the model between."""

    backbone: str = "random_backbone.safetensors"
    autoencoder: str = "random_autoencoder.safetensors"
    image: str = "photo.png"
    prompt: str = "make it brighter"
    batch: int = 1

    def __post_init__(self) -> None:
        self.model = self.add("UNETLoader", unet_name=self.backbone, weight_dtype="default")
        self.vae = self.add("VAELoader", vae_name=self.autoencoder)
        self.photo = self.add("LoadImage", outputs=2, image=self.image)[0]
        for _ in range(1, self.batch):
            turned = self.add("ImageInvert", image=self.photo)
            self.photo = self.add("ImageBatch", image1=self.photo, image2=turned)
        self.conditioning, self.latent, self.fitted = self.add(
            "HYWU_EmbeddedEncode", outputs=3, image=self.photo, prompt=self.prompt, vae=self.vae
        )

    def adapter(self, generator: str = "random_generator.safetensors") -> tuple[Link, Link]:
        """Load, condition, generate: the links of the adapter and of core's LORA_MODEL."""
        loaded = self.add("HYWU_LoadGenerator", generator_name=generator)
        condition = self.add("HYWU_Condition", generator=loaded, image=self.photo, prompt=self.prompt)
        return tuple(self.add("HYWU_GenerateLoRA", outputs=2, generator=loaded, condition=condition))

    def sample(self, model: Link) -> str:
        """Sample with this model; the id of a Save Latent node."""
        return self.add("SaveLatent", outputs=0, samples=self.sampled(model), filename_prefix="latents/test")


def latent(server: ComfyServer, graph: EditGraph, saved: str) -> Tensor:
    """Run a graph and read what its Save Latent node wrote, every bit of it."""
    file = server.run(graph.nodes)[saved]["latents"][0]
    return load_file(server.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


def frozen(server: ComfyServer, **settings: Any) -> Tensor:
    """The latents of the graph without any LoRA."""
    graph = EditGraph(**settings)
    return latent(server, graph, graph.sample(graph.model))


class Untouched:
    """What a server draws without any LoRA as the first thing it does, to compare with what it does later."""

    _seed = 11

    def __init__(self, server: ComfyServer) -> None:
        self._server, self._first = server, frozen(server, seed=self._seed)

    def drawn_again(self) -> bool:
        """Whether the same graph, sampled anew, gives the same bits."""
        graph = EditGraph(seed=self._seed)
        saved = graph.sample(graph.model)
        again = latent(self._server, graph, saved)
        sampler, _ = graph.nodes[saved]["inputs"]["samples"]
        assert sampler not in self._server.cached(), "nothing was sampled"
        return torch.equal(again, self._first)
