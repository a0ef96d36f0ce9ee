"""Batches of edits: rows are what they would be alone; layouts that cannot be stacked are refused."""

from __future__ import annotations

import pytest
import torch

from hywu_core import LoraSpec
from hywu_core.backbones.flux_kontext import picture_starts
from hywu_core.backbones.inputs import EditInputs, EditSample, collate
from hywu_core.backbones.packing import PATCH
from hywu_core.backbones.qwen_image_edit import QwenImageEdit
from hywu_core.backbones.registry import kinds
from hywu_core.conditions.backbone_hidden import hidden_condition
from hywu_core.data.paired.buckets import Buckets
from hywu_core.errors import HywuError

PIXELS = 8  # to a latent
PROMPTS = ("snow", "make the cat an old faded photograph with a dog in it")


def sample(encoders, prompt: str, n_controls: int, seed: int = 0) -> EditSample:
    random = torch.Generator().manual_seed(seed)
    pictures = [torch.rand(1, 3, 64, 64 + 32 * i, generator=random) for i in range(n_controls)]
    controls = tuple(encoders.encode_image(picture) for picture in pictures)
    return EditSample(encoders.encode_text(prompt, pictures), controls)


def test_pictures_for_qwen_have_even_numbers_of_tokens():
    # Where a side has an odd number, ComfyUI counts its positions from another middle than diffusers.
    for sizes in (QwenImageEdit.target_sizes, QwenImageEdit.control_sizes):
        for size in Buckets(sizes.area, sizes.divisor).sizes:
            assert all(side // (PIXELS * PATCH) % 2 == 0 for side in size), size


@pytest.mark.parametrize("kind", kinds())
def test_a_batch_is_its_samples(kind, load):
    encoders, backbone = load(kind)
    samples = [sample(encoders, prompt, 1, seed) for seed, prompt in enumerate(PROMPTS)]
    x, time = torch.randn(2, 16, 8, 12), torch.tensor([0.3, 0.8])
    together = backbone(x, time, backbone.collate(samples))
    for row in range(2):
        rows = slice(row, row + 1)
        alone = backbone(x[rows], time[rows], backbone.collate(samples[rows]))
        torch.testing.assert_close(together[rows], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind != "longcat_image_edit"])
@pytest.mark.parametrize("n", [0, 2])
def test_any_number_of_pictures(kind, n, load):
    encoders, backbone = load(kind)
    edit = backbone.collate([sample(encoders, PROMPTS[0], n)])
    x, time = torch.randn(1, 16, 8, 8), torch.tensor([0.5])
    velocity = backbone(x, time, edit)
    assert velocity.shape == x.shape
    assert velocity.isfinite().all()
    if n:  # every picture matters
        for changed in range(n):
            controls = [c + 1 if i == changed else c for i, c in enumerate(edit.controls)]
            assert not torch.allclose(velocity, backbone(x, time, EditInputs(edit.text, tuple(controls))))


@pytest.mark.parametrize("kind", ["flux_kontext", "qwen_image_edit", "longcat_image_edit"])
def test_an_edit_without_words(kind, load):
    encoders, backbone = load(kind)
    edit = backbone.collate([sample(encoders, "", 1)])
    assert backbone(torch.randn(1, 16, 8, 8), torch.tensor([0.5]), edit).isfinite().all()


@pytest.mark.parametrize("n", [0, 2])
def test_longcat_edits_one_picture(n, load):
    encoders, backbone = load("longcat_image_edit")
    with pytest.raises(HywuError, match=f"{n} pictures; the backbone longcat_image_edit takes 1"):
        sample(encoders, PROMPTS[0], n)
    edit = EditInputs({"embeds": torch.zeros(1, 4, 32)}, (torch.zeros(1, 16, 8, 8),) * n)
    with pytest.raises(HywuError, match=f"{n} pictures"):
        backbone(torch.zeros(1, 16, 8, 8), torch.zeros(1), edit)


def test_longcat_prompts_that_are_too_long_are_named(load):
    encoders, _ = load("longcat_image_edit")
    with pytest.raises(HywuError, match="at most 512 tokens of a prompt; this one is longer: 'snow snow"):
        encoders.encode_text("snow " * 600, [torch.rand(1, 3, 32, 32)])


def test_longcat_texts_of_unlike_lengths_are_refused(load):
    _, backbone = load("longcat_image_edit")
    samples = [EditSample({"embeds": torch.zeros(1, n, 32)}) for n in (4, 5)]
    with pytest.raises(HywuError, match="unlike lengths"):
        backbone.collate(samples)


def test_texts_are_padded_and_masked_only_where_they_must():
    texts = [torch.randn(1, n, 6) for n in (3, 5)]
    alike = collate([EditSample({"embeds": texts[0]})] * 2)
    assert alike.text.keys() == {"embeds"}
    unlike = collate([EditSample({"embeds": text}) for text in texts])
    assert torch.equal(unlike.text["embeds"][0, :3], texts[0][0])
    assert not unlike.text["embeds"][0, 3:].any()
    assert unlike.text["mask"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    condition = hidden_condition(*unlike.hidden())
    assert condition.mask.sum(1).tolist() == [3, 5]


def test_rows_and_repetition():
    inputs = EditInputs({"embeds": torch.arange(3.0).view(3, 1, 1)}, (torch.arange(3.0).view(3, 1, 1, 1),))
    assert len(inputs) == 3
    assert inputs[[2, 0]].text["embeds"].flatten().tolist() == [2, 0]
    assert inputs[1:].controls[0].flatten().tolist() == [1, 2]
    assert inputs.repeat(2).controls[0].flatten().tolist() == [0, 0, 1, 1, 2, 2]


def test_dtypes_change_only_where_there_are_fractions():
    inputs = EditInputs({"embeds": torch.zeros(1, 2, 3), "mask": torch.ones(1, 2, dtype=torch.bool)})
    moved = inputs.to("cpu", torch.bfloat16)
    assert (moved.text["embeds"].dtype, moved.text["mask"].dtype) == (torch.bfloat16, torch.bool)


@pytest.mark.parametrize(
    ("controls", "words"),
    [
        ([1, 2], "cannot share a batch"),
        ([], "at least one sample"),
    ],
)
def test_what_cannot_be_stacked_is_named(controls, words):
    text = {"embeds": torch.zeros(1, 2, 3)}
    samples = [EditSample(text, (torch.zeros(1, 16, 8, 8),) * n) for n in controls]
    with pytest.raises(HywuError, match=words):
        collate(samples)


def test_kontext_pictures_lie_where_comfyui_puts_them():
    # comfy/ldm/flux/model.py, method "offset": right where that keeps the canvas lower, else below.
    wide, tall = (64, 96), (96, 64)
    assert list(picture_starts([wide])) == [(0, 0)]
    assert list(picture_starts([wide, wide])) == [(0, 0), (32, 0)]
    assert list(picture_starts([tall, tall])) == [(0, 0), (0, 32)]
    assert list(picture_starts([wide, tall, wide])) == [(0, 0), (32, 0), (0, 48)]


@pytest.mark.parametrize("kind", kinds())
def test_default_targets_are_attention_and_mlp_of_every_block(kind, load):
    backbone = load(kind)[1]
    spec = LoraSpec.from_module(backbone.transformer, include=backbone.default_targets)
    everything = LoraSpec.from_module(backbone.transformer)
    left_out = {target.name for target in everything.targets} - {target.name for target in spec.targets}
    assert all("norm" in name or "_mod." in name for name in left_out)
    assert spec.bands
