"""The real classes of transformers, small and with random weights, saved to a folder and read from there."""

import logging
import re
import shutil

import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hywu_core.conditions import ConditionEncoder, SigLIP2Encoder
from hywu_core.conditions.encoder import weights_hash
from hywu_core.conditions.pictures import resize
from hywu_core.errors import HywuError

transformers = pytest.importorskip("transformers")

TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"vocab_size": 40, "max_position_embeddings": 12, "projection_size": 16}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"patch_size": 4}


def save_tokenizer(folder):
    """Words as tokens, an <eos> at the end and <pad> on the right: the shape of SigLIP2's tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<eos>", "<unk>", "make", "it", "dark", "bright", "a", "cat", "please"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


def save_model(folder, naflex: bool = False, **vision):
    torch.manual_seed(0)
    if naflex:
        config = transformers.Siglip2Config(
            text_config=TEXT, vision_config=VISION | {"num_patches": 16} | vision
        )
        model = transformers.Siglip2Model(config)
    else:
        config = transformers.SiglipConfig(
            text_config=TEXT, vision_config=VISION | {"image_size": 12} | vision
        )
        model = transformers.SiglipModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def cache_model(cache, folder, id):
    """Put a model into a Hugging Face cache as its hub client does; returns its folder there."""
    entry, commit = cache / f"models--{id.replace('/', '--')}", "0" * 40
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(commit)
    return shutil.copytree(folder, entry / "snapshots" / commit)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("fixed") / "siglip2-tiny")


@pytest.fixture(scope="module")
def encoder(folder):
    return SigLIP2Encoder.load(folder)


@pytest.fixture(scope="module")
def naflex(tmp_path_factory):
    return SigLIP2Encoder.load(
        save_model(tmp_path_factory.mktemp("naflex") / "tiny", naflex=True), max_patches=16
    )


@pytest.fixture
def picture():
    return torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))


def test_it_is_an_encoder_that_says_what_it_is(encoder, naflex):
    assert isinstance(encoder, ConditionEncoder)
    told = {"kind": "siglip2", "id": "siglip2-tiny", "dim": 16, "sha256": encoder.sha256}
    assert encoder.info() == told
    told = {"kind": "siglip2", "id": "tiny", "dim": 16, "max_patches": 16, "sha256": naflex.sha256}
    assert naflex.info() == told


def test_other_weights_under_the_same_name_have_another_hash(encoder, folder, tmp_path, monkeypatch):
    assert re.fullmatch("[0-9a-f]{64}", encoder.sha256)
    with monkeypatch.context() as patch:
        patch.setattr("hywu_core.conditions.encoder._sampled", None)
        assert weights_hash(encoder) == encoder.sha256  # not taken again
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert SigLIP2Encoder.load(copy).sha256 == encoder.sha256
    tensors = load_file(copy / "model.safetensors")
    tensors["logit_bias"] += 1
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert SigLIP2Encoder.load(copy).sha256 != encoder.sha256


@pytest.fixture
def lookups(monkeypatch):
    """The hosts that were asked for: libraries go on without an answer, after a while."""
    asked = []

    def refuse(host, *arguments, **options):
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    return asked


def test_a_model_of_the_hub_keeps_its_owner_and_is_read_from_the_cache_alone(
    folder, tmp_path, monkeypatch, lookups
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = cache_model(tmp_path, folder, "me/siglip2-mine")
    assert SigLIP2Encoder.load("me/siglip2-mine").id == "me/siglip2-mine"
    assert SigLIP2Encoder.load(snapshot).id == "me/siglip2-mine"
    assert not lookups


@pytest.mark.parametrize("name", ["my siglip", "siglip2 (1)", "siglip+v2", ".siglip"])
def test_a_folder_that_no_generator_could_find_again_is_refused_before_it_is_read(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(HywuError, match=rf"could not find .* again by its folder's name '{re.escape(name)}'"):
        SigLIP2Encoder.load(tmp_path / name)


def test_the_folder_one_stands_in_has_a_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert SigLIP2Encoder.load(".").id == "siglip2-tiny"


def test_a_name_without_an_owner_is_no_model_of_the_hub():
    with pytest.raises(HywuError, match="no folder siglip2-tiny; of a model on the hub, give owner and name"):
        SigLIP2Encoder.load("siglip2-tiny")


def test_tokens_are_those_of_the_two_towers(encoder, picture):
    condition = encoder.encode([picture], ["make it dark"])
    model = encoder.model
    with torch.no_grad():
        image = model.vision_model(resize(picture, (12, 12))[None]).last_hidden_state
        ids = torch.tensor([[3, 4, 5, 1] + [0] * 8])
        text = model.text_model(input_ids=ids).last_hidden_state
    wanted = torch.cat([image, text[:, :4], text[:, -1:]], dim=1)  # words, <eos>, and the summing-up place
    torch.testing.assert_close(condition.tokens, wanted)
    assert condition.tokens.shape == (1, 9 + 5, 16)
    assert condition.mask is None


def test_naflex_tokens_are_those_of_its_tower(naflex, picture):
    condition = naflex.encode([picture], ["a"])
    processor = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")
    inputs = processor.Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16)(
        (picture.permute(1, 2, 0) * 255).round().byte().numpy(), return_tensors="pt"
    )
    n_patches = int(inputs["spatial_shapes"].prod())
    with torch.no_grad():
        hidden = naflex.model.vision_model(
            inputs["pixel_values"], inputs["pixel_attention_mask"], inputs["spatial_shapes"]
        ).last_hidden_state
    assert n_patches == 15
    error = condition.tokens[0, :n_patches] - hidden[0, :n_patches]
    assert error.abs().max() < 0.05 * hidden.std()  # rounding to 8 bits


@pytest.mark.parametrize("which", ["encoder", "naflex"])
def test_a_batch_is_its_edits_one_by_one(which, request, picture):
    encoder = request.getfixturevalue(which)
    pictures = [picture, [picture.flip(2), torch.rand(3, 9, 40)], picture[:, :8]]
    prompts = ["make it bright", "a cat", "please make it dark a cat please"]
    together = encoder.encode(pictures, prompts)
    assert together.mask is not None
    for i in range(3):
        alone = encoder.encode(pictures[i : i + 1], prompts[i : i + 1])
        assert together.alone(i).tokens.equal(alone.tokens)  # every bit: caches are keyed by them
    assert together.prompts == tuple(prompts)


def test_several_pictures_of_one_edit_follow_each_other(encoder, picture):
    other = picture.flip(1)
    both = encoder.encode([[picture, other]], ["a cat"]).tokens[0]
    first, second = (encoder.encode([p], ["a cat"]).tokens[0] for p in (picture, other))
    torch.testing.assert_close(both, torch.cat([first[:9], second]), atol=1e-5, rtol=1e-5)


def test_a_picture_of_several_edits_is_looked_at_once(encoder, picture, monkeypatch):
    seen = []
    monkeypatch.setattr(encoder, "_see", lambda p, see=encoder._see: seen.append(p.shape) or see(p))
    cut = picture[:, :8]  # begins at the same place in memory
    condition = encoder.encode([picture, [picture, cut], cut], ["a cat", "a", "a"])
    assert seen == [picture.shape, cut.shape]
    assert condition.alone(2).tokens.equal(encoder.encode([cut.clone()], ["a"]).tokens)


def test_pil_and_tensor_are_the_same_picture(encoder):
    pixels = torch.randint(0, 256, (15, 17, 3), dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    tensor = pixels.permute(2, 0, 1).float() / 255
    a, b = encoder.encode([image], ["a"]), encoder.encode(tensor[None], ["a"])
    torch.testing.assert_close(a.tokens, b.tokens)
    encoder.encode([image.convert("RGBA"), image.convert("L")], ["a", "a"])


def test_case_does_not_matter_and_words_do(encoder, picture):
    lower, upper, other = (encoder.encode([picture], [p]).tokens for p in ("a cat", "A CAT", "it cat"))
    assert lower.equal(upper)
    assert not lower.equal(other)


def test_a_long_instruction_is_cut_and_the_log_says_so(encoder, picture, caplog):
    with caplog.at_level(logging.WARNING, "hywu"):
        condition = encoder.encode([picture], ["cat " * 30])
    assert condition.tokens.shape[1] == 9 + 12
    assert "reads 12 tokens; an instruction of 31 is cut" in caplog.text


def test_a_narrower_tower_is_filled_with_zeros(tmp_path, picture):
    wide = SigLIP2Encoder.load(save_model(tmp_path / "wide", hidden_size=24))
    tokens = wide.encode([picture], ["a cat"]).tokens[0]
    assert (wide.dim, tokens.shape[1]) == (24, 24)
    assert tokens[:9, 16:].any()
    assert not tokens[9:, 16:].any()
    assert tokens[9:, :16].any()


def test_half_precision_model_gives_float32_tokens(folder, picture):
    half = SigLIP2Encoder.load(folder, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert half.encode([picture], ["a cat"]).tokens.dtype == torch.float32


def test_nothing_is_trained(encoder, picture):
    assert not any(p.requires_grad for p in encoder.model.parameters())
    assert not encoder.encode([picture.requires_grad_()], ["a"]).tokens.requires_grad


@pytest.mark.parametrize(
    ("images", "prompts", "complaint"),
    [
        ([torch.rand(3, 8, 8)], ["a", "b"], "1 edits and 2 instructions"),
        ([torch.rand(3, 8, 8)], "a", "lists of equal length"),
        ([], [], "0 edits and 0"),
        ([[]], ["a"], "Edit 0 has no picture"),
        ([torch.rand(8, 8, 3)], ["a"], r"shape \(8, 8, 3\)"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], ["a"], "torch.uint8 tensor"),
        ([torch.full((3, 8, 8), float("nan"))], ["a"], "not finite"),
    ],
)
def test_bad_input_is_named(encoder, images, prompts, complaint):
    with pytest.raises(HywuError, match=complaint):
        encoder.encode(images, prompts)


def test_without_permission_nothing_is_downloaded(lookups):
    with pytest.raises(HywuError, match=r"nobody/nothing cannot be loaded: .*or allow the download"):
        SigLIP2Encoder.load("nobody/nothing")
    assert not lookups


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(HywuError, match="nowhere cannot be loaded"):
        SigLIP2Encoder.load(tmp_path / "nowhere")


def test_missing_weights_are_an_error_and_not_random(tmp_path):
    folder = save_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_model.embeddings.token_embedding.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(HywuError, match=r"lacks 1 of its weights, such as text_model\.embeddings\.token_emb"):
        SigLIP2Encoder.load(folder)


def test_another_model_is_refused(tmp_path):
    config = transformers.CLIPTextConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=40
    )
    transformers.CLIPTextModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(HywuError, match="is a clip_text_model model"):
        SigLIP2Encoder.load(tmp_path)
