"""The embedded encoder on pictures of many sizes, with random weights where none are shipped."""

import pytest
import torch

from hywu_core.conditions import ConditionEncoder
from hywu_core.conditions.embedded import (
    CONDITION_DIM,
    EmbeddedConditionEncoder,
    embedded_condition,
    image_tokens,
)
from hywu_core.conditions.registry import load_encoder
from hywu_core.embedded import AUTOENCODER
from hywu_core.embedded.sizing import fit_image
from hywu_core.errors import HywuError

from ..mps import PretendMps

pytestmark = pytest.mark.skipif(
    not AUTOENCODER.exists(), reason=f"{AUTOENCODER.name} is not in this checkout"
)


@pytest.fixture(scope="module")
def encoder():
    return EmbeddedConditionEncoder.load()


@pytest.fixture
def pictures():
    random = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=random) for size in ((60, 90), (40, 40), (100, 30))]


def test_pictures_of_any_sizes_are_one_batch_of_the_same_bits_as_alone(encoder, pictures):
    assert isinstance(encoder, ConditionEncoder)
    prompts = ["make it darker", "把照片变亮", "a long instruction of quite a few words"]
    together = encoder.encode(pictures, prompts)
    assert together.tokens.shape == (3, 49, CONDITION_DIM)
    alone = [encoder.encode([picture], [text]) for picture, text in zip(pictures, prompts, strict=True)]
    assert together.digests() == tuple(c.digests()[0] for c in alone)
    assert together.prompts == tuple(prompts)
    latents = encoder.autoencoder.encode(fit_image(pictures[0][None]))
    direct = embedded_condition(latents, encoder.text_encoder.encode(prompts[:1]))
    assert direct.digests()[0] == together.digests()[0]  # what the pipeline makes of it


def test_one_picture_and_many_instructions_is_encoded_once(encoder, pictures, monkeypatch):
    calls = []
    encode = encoder.autoencoder.encode
    monkeypatch.setattr(encoder.autoencoder, "encode", lambda x: calls.append(len(x)) or encode(x))
    condition = encoder.encode([pictures[0]] * 3, ["a", "b", "c"])
    assert calls == [1]
    assert len(set(condition.digests())) == 3


@pytest.mark.parametrize("size", [(26, 39), (28, 28), (40, 32)])
def test_photographs_of_every_shape_are_seen_on_apples_gpu(size):
    latents = torch.randn(2, 16, *size, generator=torch.Generator().manual_seed(0))
    with PretendMps():
        found = image_tokens(latents)
        assert found.device.type == "mps"
    assert torch.equal(found, image_tokens(latents))


def test_several_references_are_refused_in_a_sentence(encoder, pictures):
    with pytest.raises(
        HywuError, match="Edit 1 has 2 reference pictures, but the embedded encoder looks at one"
    ):
        encoder.encode([pictures[0], pictures[:2]], ["a", "b"])


@pytest.mark.parametrize(
    ("said", "warned"), [({}, False), ({"sha256": "0" * 64}, True), (EmbeddedConditionEncoder.info(), False)]
)
def test_a_generator_that_learned_with_other_files_is_known(caplog, said, warned):
    load_encoder({"kind": "embedded", **said})
    assert ("learned with other files" in caplog.text) == warned
