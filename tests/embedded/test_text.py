"""The embedded text encoder: its contract on any weights, and what the shipped weights understand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from hywu_core.data.instructions import phrases
from hywu_core.embedded.quantize import dequantize, quantize
from hywu_core.embedded.text import TEXT_ENCODER, EmbeddedTextEncoder, TextEncoderConfig
from hywu_core.errors import HywuError
from hywu_core.train.text_accuracy import centroids, embed, nearest_operations

USER_PHRASES = json.loads(Path(__file__).with_name("user_phrases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def encoder() -> EmbeddedTextEncoder:
    return EmbeddedTextEncoder.load()


@pytest.fixture(scope="module")
def small() -> EmbeddedTextEncoder:
    """The architecture with random weights and a vocabulary of letters."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    torch.manual_seed(0)
    config = TextEncoderConfig(vocabulary=len(pieces), width=16, branch_width=8, head_width=12)
    return EmbeddedTextEncoder(config, tokenizer).eval()


def test_shapes_scales_and_padding(encoder):
    text = encoder.encode(["make it brighter", "调亮"])
    assert text.tokens.shape == (2, 32, 512)
    assert text.tokens.dtype == torch.float32
    assert text.mask.dtype == torch.bool
    assert torch.equal(text.tokens[:, 0], text.pooled)
    assert not text.tokens[~text.mask].any()
    # Unit variance: the pooled embedding by its norm, the words by their layer norm.
    assert text.pooled.norm(dim=1) == pytest.approx(512**0.5, rel=1e-3)
    words = text.tokens[:, 1:][text.mask[:, 1:]]
    assert words.var(dim=1, correction=0) == pytest.approx(1.0, rel=1e-2)


def test_company_and_repetition_change_no_bit(encoder):
    alone = encoder.encode(["blur the background"])
    prompts = ["x", "blur the background", "turn it into a long, long story about an old faded photograph"]
    together = encoder.encode(prompts)
    for one, many in zip(alone, together, strict=True):
        assert torch.equal(one[0], many[1])


def test_case_width_and_quotes_are_one_spelling(encoder):
    plain, loud, wide = encoder.encode(["it's too dark", "  IT’S  TOO   DARK ", "ｉｔ＇ｓ too dark"]).pooled
    assert torch.equal(plain, loud)
    assert torch.equal(plain, wide)


def test_long_prompts_lose_words_but_not_the_sentence(encoder):
    stem = "please " * 60
    text = encoder.encode([stem + "brighten it", stem + "flip it"])
    assert text.mask.all()
    assert torch.equal(text.tokens[0, 1:-1], text.tokens[1, 1:-1])
    assert not torch.equal(text.pooled[0], text.pooled[1])
    endless = encoder.encode(["please " * 500, "please " * 900])
    assert torch.equal(endless.pooled[0], endless.pooled[1])


def test_an_instruction_that_is_cut_is_warned_of(small, caplog):
    small.encode(["a" * 127, "hello"])  # with the mark of a word's start, all of 128
    assert caplog.text == ""
    small.encode(["a" * 128])
    assert "reads 128 pieces; an instruction of 129 is cut" in caplog.text


@pytest.mark.parametrize("prompt", ["", "  ", "\n\t", "\u3000", "\u200b"])
def test_empty_prompts_are_refused(encoder, prompt):
    with pytest.raises(HywuError, match="empty"):
        encoder.encode(["brighter", prompt])


@pytest.mark.parametrize("prompts", [[], "brighter"])
def test_only_lists_of_prompts(encoder, prompts):
    with pytest.raises(HywuError, match="list"):
        encoder.encode(prompts)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(encoder, prompt):
    try:
        text = encoder.encode([prompt])
    except HywuError:
        return
    assert text.tokens.isfinite().all()
    assert text.mask[0, 0]


def test_padding_does_not_reach_the_words(small):
    short, long = [torch.tensor([small.tokenize(prompt)]) for prompt in ("ab", "abcdefgh")]
    ids = torch.zeros(2, long.shape[1], dtype=torch.long)
    ids[0, : short.shape[1]], ids[1] = short[0], long[0]
    mask = torch.arange(long.shape[1])[None] < torch.tensor([[short.shape[1]], [long.shape[1]]])
    features, sentence = small(ids, mask)
    alone_features, alone_sentence = small(short, torch.ones_like(short, dtype=torch.bool))
    torch.testing.assert_close(features[:1, : short.shape[1]], alone_features)
    torch.testing.assert_close(sentence[:1], alone_sentence)


def test_save_and_load(small, tmp_path):
    path = tmp_path / "text.safetensors"
    small.save(path, {"embedding.weight": 4}, {"seed": "0"})
    loaded = EmbeddedTextEncoder.load(path)
    assert loaded.config == small.config
    assert loaded.tokenize("hello you") == small.tokenize("hello you")
    cosine = torch.cosine_similarity(loaded.encode(["hello you"]).pooled, small.encode(["hello you"]).pooled)
    assert cosine.item() > 0.98
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_memory_draws_a_sentence_to_the_nearest_direction_and_leaves_the_words(small, tmp_path):
    prompts = ["hello you", "something else", "abc"]
    plain = small.encode(prompts)
    # Near the first sentence, twice as far from the second, and opposite to the third.
    near = torch.nn.functional.normalize(plain.pooled, dim=-1)
    directions = torch.stack([near[0] + 0.02 * torch.arange(16) / 16, -near[2]])
    memory = small.remembering(directions)
    for encoder in (memory, _stored(memory, tmp_path, 8)):
        recalled = encoder.encode(prompts)
        assert torch.equal(recalled.tokens[:, 1:], plain.tokens[:, 1:])
        assert torch.equal(recalled.tokens[:, 0], recalled.pooled)
        cosine = torch.cosine_similarity(recalled.pooled[:1], directions[:1])
        assert cosine.item() > 0.9999
        assert not torch.equal(recalled.pooled[0], plain.pooled[0])
        assert recalled.pooled.norm(dim=1) == pytest.approx(4, rel=1e-5)
    ids = torch.tensor([small.tokenize("hello you")])
    mask = torch.ones_like(ids, dtype=torch.bool)
    for raw, other in zip(small(ids, mask), memory(ids, mask), strict=True):
        assert torch.equal(raw, other), "what the memory is made of must not pass through it"


def test_a_sentence_like_nothing_remembered_stays_as_it_is(small):
    plain = small.encode(["hello you"])
    away = small.remembering(-plain.pooled)
    assert torch.equal(away.encode(["hello you"]).pooled, plain.pooled)
    assert away.encode(["  "], silent=True).pooled.eq(0).all()


def test_a_file_without_a_memory_recalls_nothing(small, tmp_path):
    loaded = _stored(small, tmp_path, 4)
    assert loaded.config.memory == 0
    assert "memory" not in loaded.state_dict()
    sentences = torch.randn(3, 16)
    assert torch.equal(loaded.recall(sentences), sentences)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"memory": -1}, "memory"), ({"width": 0}, "at least 1"), ({"recall_above": 1.5}, "not 1.5")],
)
def test_settings_that_are_not_sizes(wrong, said):
    with pytest.raises(HywuError, match=said):
        TextEncoderConfig(**{"vocabulary": 30, **wrong})


def _stored(encoder: EmbeddedTextEncoder, folder: Path, memory_bits: int) -> EmbeddedTextEncoder:
    path = folder / "stored.safetensors"
    encoder.save(path, {"memory": memory_bits}, {"seed": "0"})
    loaded = EmbeddedTextEncoder.load(path)
    # Only the memory is under test, so the words are not to be rounded.
    loaded.load_state_dict(
        {**encoder.state_dict(), **{k: v for k, v in loaded.state_dict().items() if k == "memory"}}
    )
    return loaded


def test_files_that_are_not_text_encoders(tmp_path):
    with pytest.raises(HywuError, match="no file"):
        EmbeddedTextEncoder.load(tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(TEXT_ENCODER.read_bytes()[:100_000])
    with pytest.raises(HywuError, match=r"broken\.safetensors"):
        EmbeddedTextEncoder.load(broken)
    from safetensors.torch import save_file

    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(HywuError, match="not an embedded text encoder"):
        EmbeddedTextEncoder.load(foreign)
    save_file({"x": torch.zeros(1)}, foreign, metadata={"kind": "hywu_embedded_text", "config": "{}"})
    with pytest.raises(HywuError, match="damaged"):
        EmbeddedTextEncoder.load(foreign)


def test_a_tokenizer_of_another_file(small):
    with pytest.raises(HywuError, match="30 pieces and the text encoder 31"):
        EmbeddedTextEncoder(TextEncoderConfig(vocabulary=31), small.tokenizer)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 8))
def test_quantisation_is_within_half_a_step_where_nothing_is_clipped(seed, bits, rows, pairs):
    matrix = torch.randn(rows, 2 * pairs, generator=torch.Generator().manual_seed(seed))
    codes, scale = quantize(matrix, bits)
    back = dequantize(codes, scale, matrix.shape)
    limit = 2 ** (bits - 1) - 1
    inside = matrix.abs() <= limit * scale.float()
    assert ((back - matrix).abs() <= 0.5001 * scale.float())[inside].all()
    again, _ = quantize(back, bits)
    assert torch.equal(dequantize(again, scale, matrix.shape), back) or bits == 4


def test_quantisation_refuses_what_it_cannot_pack():
    with pytest.raises(HywuError, match="3 values"):
        quantize(torch.zeros(2, 3), 4)
    with pytest.raises(HywuError, match="not 5"):
        quantize(torch.zeros(2, 4), 5)
    with pytest.raises(HywuError, match="shape"):
        dequantize(*quantize(torch.zeros(2, 4), 8), (3, 4))


def test_the_shipped_file_is_small():
    assert TEXT_ENCODER.stat().st_size < 7_500_000


@pytest.fixture(scope="module")
def accuracy(encoder) -> dict[str, float]:
    """The share of each set of wordings that is nearest to what it asks for, out of 76 operations."""
    asked = {"user": [(op, text) for op, texts in USER_PHRASES.items() for text in texts]}
    for language in ("en", "zh"):
        asked[language] = [(p.operation, p.text) for p in phrases("held_out", None, (language,))]
    texts = [text for pairs in asked.values() for _, text in pairs]
    found = iter(nearest_operations(encoder, texts, sorted(USER_PHRASES)))
    right = {}
    for name, pairs in asked.items():
        wrong = [f"{op} -> {other}: {text}" for op, text in pairs if (other := next(found)) != op]
        print(f"{name}: {len(wrong)} of {len(pairs)} wrong", *wrong, sep="\n  ")
        right[name] = 1 - len(wrong) / len(pairs)
    return right


def test_what_users_write_is_nearest_to_what_they_ask_for(accuracy):
    """Words of nobody's bank."""
    assert accuracy["user"] >= 0.95


def test_held_out_phrases(accuracy):
    """The bank's held-out phrases avoid the training phrases' words on purpose; numbers in the model card."""
    assert accuracy["en"] >= 0.78
    assert accuracy["zh"] >= 0.83


def test_the_shipped_memory_holds_every_operation(encoder):
    """What people write recalls the direction of what they ask for; other sentences recall nothing."""
    operations = sorted(USER_PHRASES)
    assert encoder.config.memory == len(operations)
    asked = [(operation, text) for operation, texts in USER_PHRASES.items() for text in texts]
    recalled = torch.nn.functional.normalize(encoder.encode([text for _, text in asked]).pooled, dim=-1)
    homes = centroids(encoder, operations)[0]
    nearest = (recalled @ homes.T).max(dim=1)
    right = sum(operations[i] == op for i, (op, _) in zip(nearest.indices.tolist(), asked, strict=True))
    assert right >= 0.95 * len(asked)
    assert nearest.values.min() > 0.98
    strangers = ["the train leaves at noon", "in the style of sks", "在桌上放一杯咖啡", "a photo of my dog"]
    stay = encoder.encode(strangers).pooled / 512**0.5
    torch.testing.assert_close(stay, embed(encoder, strangers)[0])


def test_user_phrases_are_not_in_the_bank():
    bank = {phrase.text.casefold() for split in ("train", "held_out") for phrase in phrases(split)}
    assert {phrase.operation for phrase in phrases("train")} == USER_PHRASES.keys()
    assert not [text for texts in USER_PHRASES.values() for text in texts if text.casefold() in bank]


def test_it_is_still_a_text_encoder(encoder):
    """Both languages share one space, about more than photographs."""
    texts = ["the weather is nice today", "今天天气很好", "the train leaves at noon", "火车中午出发"]
    sentences = embed(encoder, texts)[0]
    near = sentences @ sentences.T
    assert near[0, 1] > near[0, 3]
    assert near[2, 3] > near[2, 1]
