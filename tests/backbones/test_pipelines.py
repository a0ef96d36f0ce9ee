"""What the transformers are called with, and what comes out, is what diffusers' own pipelines do.

Each case runs the real pipeline on random weights and compares every argument of every call of its
transformer with ours, the latents that it ends at with those of `sample`, and its picture with
`decode_latent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit as longcat
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as qwen
from PIL import Image
from torch import Tensor

from hywu_core.backbones.inputs import EditInputs, EditSample
from hywu_core.backbones.packing import patchify, unpatchify
from hywu_core.images import to_tensor

from .tiny_folders import open_pipeline

STEPS = 3
WIDTH, HEIGHT = 96, 64
PROMPT = "make the cat an old faded photograph, add 'snow'"
NEGATIVE = "blurred"


@dataclass(frozen=True)
class Case:
    """An edit: sizes of its pictures as files, and as the pipeline scales them; arguments of both sides."""

    kind: str
    pictures: Sequence[tuple[int, int]]
    references: Sequence[tuple[int, int]]
    pipeline: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)
    negative: str | None = None


KONTEXT = {"height": HEIGHT, "width": WIDTH, "max_area": HEIGHT * WIDTH, "_auto_resize": False}
QWEN = {"height": HEIGHT, "width": WIDTH, "true_cfg_scale": 1.0}
CASES = {
    "flux_kontext": Case(
        "flux_kontext",
        [(112, 80)],
        [(112, 80)],
        KONTEXT | {"guidance_scale": 2.5},
        {"guidance": 2.5},
    ),
    "flux_kontext without a picture": Case(
        "flux_kontext", [], [], KONTEXT | {"guidance_scale": 1.0}, {"guidance": 1.0}
    ),
    "flux_kontext with true guidance": Case(
        "flux_kontext",
        [(64, 64)],
        [(64, 64)],
        KONTEXT | {"guidance_scale": 2.5, "true_cfg_scale": 3.0, "negative_prompt": NEGATIVE},
        {"guidance": 2.5, "cfg": 3.0},
        NEGATIVE,
    ),
    "qwen_image_edit": Case("qwen_image_edit", [(150, 100)], [(96, 64)], QWEN),
    "qwen_image_edit with three pictures": Case(
        "qwen_image_edit", [(150, 100), (64, 96), (80, 80)], [(96, 64), (64, 96), (64, 64)], QWEN
    ),
    "qwen_image_edit with true guidance": Case(
        "qwen_image_edit",
        [(150, 100)],
        [(96, 64)],
        QWEN | {"true_cfg_scale": 4.0, "negative_prompt": NEGATIVE},
        {"cfg": 4.0},
        NEGATIVE,
    ),
    "longcat_image_edit": Case("longcat_image_edit", [(150, 100)], [(96, 64)], {"guidance_scale": 1.0}),
    "longcat_image_edit with guidance": Case(
        "longcat_image_edit",
        [(150, 100)],
        [(96, 64)],
        {"guidance_scale": 4.5, "negative_prompt": NEGATIVE},
        {"cfg": 4.5},
        NEGATIVE,
    ),
}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """References of about 96 x 64 pixels instead of a million; how they are found stays."""
    monkeypatch.setattr(qwen, "VAE_IMAGE_SIZE", WIDTH * HEIGHT)
    real = longcat.calculate_dimensions
    monkeypatch.setattr(longcat, "calculate_dimensions", lambda area, ratio: real(WIDTH * HEIGHT, ratio))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_calls_and_results_are_the_pipelines_own(case, folders, load):
    pictures = [noisy_picture(*size, seed) for seed, size in enumerate(case.pictures)]
    noise = torch.randn(1, 16, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(7))
    calls, latents, image = run_pipeline(case, folders[case.kind], pictures, noise)

    encoders, backbone = load(case.kind)
    resize = encoders.pipeline.image_processor.resize
    references = tuple(
        encoders.encode_image(to_tensor(resize(picture, height, width)))
        for picture, (width, height) in zip(pictures, case.references, strict=True)
    )

    def inputs(prompt: str) -> EditInputs:
        text = encoders.encode_text(prompt, [to_tensor(picture) for picture in pictures])
        return backbone.collate([EditSample(text, references)])

    wanted = inputs(PROMPT)
    unwanted = inputs(case.negative) if case.negative is not None else None
    guidance = case.sample.get("guidance", 1.0)
    rounds = 2 if unwanted else 1
    assert len(calls) == STEPS * rounds
    for number, call in enumerate(calls):
        given = unwanted if number % rounds else wanted
        time = call["timestep"]
        x = unpacked(call["hidden_states"][:, : HEIGHT * WIDTH // 256])
        compare(backbone.arguments(x, time, given, guidance), call)

    ours = backbone.sample(wanted, noise, STEPS, negative=unwanted, **case.sample)
    torch.testing.assert_close(patchify(ours), latents, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(encoders.decode_latent(ours), image, atol=1e-4, rtol=1e-4)


def run_pipeline(case: Case, folder, pictures, noise: Tensor) -> tuple[list[dict], Tensor, Tensor]:
    """The arguments of every call of its transformer, the latents and the picture it ends at."""
    pipeline = open_pipeline(folder)
    calls: list[dict[str, Any]] = []
    pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(dict(kwargs)), with_kwargs=True
    )
    ends: list[Tensor] = []
    step = pipeline.scheduler.step

    def watched(*args, **kwargs):
        out = step(*args, **kwargs)
        ends.append(out[0])
        return out

    pipeline.scheduler.step = watched
    image = {"image": pictures if len(pictures) > 1 else pictures[0]} if pictures else {}
    result = pipeline(
        prompt=PROMPT,
        latents=patchify(noise),
        num_inference_steps=STEPS,
        output_type="pt",
        **image,
        **case.pipeline,
    )
    return calls, ends[-1], result.images


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Equal but for types of numbers and for arguments that are not used."""
    used = {name: value for name, value in theirs.items() if value is not None and value != {}}
    used.pop("return_dict")
    ours = {name: value for name, value in ours.items() if value is not None}
    assert ours.keys() == used.keys()
    for name, value in used.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(ours[name].to(value.dtype), value, atol=1e-6, rtol=1e-6, msg=name)
        else:
            assert ours[name] == value, name


def unpacked(tokens: Tensor) -> Tensor:
    return unpatchify(tokens, HEIGHT // 8, WIDTH // 8)


def noisy_picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy()).resize((width, height))
