"""The embedded models behind the common protocol do what they do on their own."""

from __future__ import annotations

import pytest
import torch

from hywu_core import HywuPipeline
from hywu_core.backbones.embedded import EmbeddedBackbone
from hywu_core.backbones.embedded_edit import EmbeddedEditBackbone
from hywu_core.backbones.inputs import EditSample
from hywu_core.backbones.sampling import seeded_noise
from hywu_core.embedded import BACKBONE
from hywu_core.embedded.text import EmbeddedTextEncoder
from hywu_core.errors import HywuError
from hywu_core.storage import file_sha256

PROMPT = "make it darker"


def test_velocities_are_those_of_the_embedded_backbone(load):
    encoders, backbone = load("embedded")
    reference, x = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 8, 8)
    time = torch.tensor([0.2, 0.9])
    text = encoders.encode_text(PROMPT)
    samples = [EditSample(text, (row[None],)) for row in reference]
    features = EmbeddedTextEncoder.load().encode([PROMPT] * 2)
    expected = EmbeddedBackbone.load()(x, time, reference, features)
    torch.testing.assert_close(backbone(x, time, backbone.collate(samples)), expected)


def test_edits_are_those_of_the_pipeline(load):
    encoders, backbone = load("embedded")
    picture = torch.rand(1, 3, 64, 96)
    expected = HywuPipeline.from_embedded().edit(picture, [PROMPT], steps=2, frozen_base=True, area=None)
    latent = encoders.encode_image(picture)
    inputs = backbone.collate([EditSample(encoders.encode_text(PROMPT), (latent,))])
    edited = encoders.decode_latent(backbone.sample(inputs, seeded_noise(latent.shape, 0), 2))
    torch.testing.assert_close(edited, expected.image, atol=1e-4, rtol=1e-4)


def test_it_is_not_quantised():
    with pytest.raises(HywuError, match="small already"):
        EmbeddedEditBackbone.load_transformer(quantize="int8")


def test_its_file_says_embedded(load):
    info = {"kind": "embedded", "id": "hywu_embedded_flux_kontext", "sha256": file_sha256(BACKBONE)}
    assert load("embedded")[1].backbone_info() == info
