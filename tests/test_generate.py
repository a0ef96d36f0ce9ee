"""From conditions to LoRAs: origins, bounds, progress, cancellation, and nothing computed twice."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from hywu_core import Adapter, Condition, GeneratorConfig, LoraSpec, ParameterGenerator
from hywu_core.errors import HywuError
from hywu_core.generate import generate, generate_kept
from hywu_core.generation_cache import MemoryCache
from hywu_core.generator.fingerprint import fingerprint
from hywu_core.lora import Band, ModuleShape
from hywu_core.lora.algebra import total_norm
from hywu_core.lora.limits import Limits

SPEC = LoraSpec(
    (
        Band("a", 3, (ModuleShape("m", 8, 12), ModuleShape("n", 12, 8))),
        Band("b", 1, (ModuleShape("e", 8, 4, 2),)),
    ),
    rank=4,
    alpha=8,
)


def new_generator(seed: int = 0, **settings) -> ParameterGenerator:
    torch.manual_seed(seed)
    config = GeneratorConfig(**{"condition_dim": 6, "d_model": 32, "n_layers": 2, "n_heads": 2, **settings})
    generator = ParameterGenerator(config, SPEC).eval().requires_grad_(False)
    torch.nn.init.normal_(generator.proj_out_B.weight, std=0.3)
    generator.backbone_info = {"kind": "test", "id": "a backbone"}
    generator.encoder_info = {"kind": "test", "id": "an encoder", "dim": 6}
    generator.provenance = {"recipe": "random"}
    return generator


@pytest.fixture(scope="module")
def generator():
    return new_generator()


@pytest.fixture
def passes(generator):
    """The batch of every forward pass of the generator."""
    seen = []
    handle = generator.register_forward_hook(lambda module, args, output: seen.append(output.batch))
    yield seen
    handle.remove()


def conditions(*seeds: int) -> Condition:
    """One condition for each seed, of its own length and words."""
    parts = []
    for seed in seeds:
        random = torch.Generator().manual_seed(seed)
        tokens = torch.randn(1, 3 + seed % 3, 6, generator=random)
        parts.append(Condition(tokens, prompts=(f"do {seed}",)))
    return Condition.stack(parts)


def same(a: Adapter, b: Adapter) -> bool:
    return (
        list(a) == list(b)
        and a.scale == b.scale
        and all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))
    )


def test_an_adapter_says_where_it_came_from(generator):
    condition = conditions(1, 2)
    adapter = generate(generator, condition, generator_sha256="0" * 64)
    assert adapter.provenance == {
        "base": "a backbone",
        "encoder": "an encoder",
        "generator_sha256": "0" * 64,
        "generator_recipe": "random",
    }
    digests = condition.digests()
    assert [dict(row) for row in adapter.rows] == [
        {"condition_sha256": digests[0], "prompt": "do 1"},
        {"condition_sha256": digests[1], "prompt": "do 2"},
    ]
    unknown = generate(generator, Condition(condition[0].tokens))
    assert "prompt" not in unknown.rows[0]
    assert "generator_sha256" not in unknown.provenance


def test_a_condition_of_another_encoder_is_refused_though_it_is_as_wide(generator):
    known = replace(conditions(0), encoder="an encoder")
    generate(generator, known)
    generate(generator, replace(known, encoder="owner/an encoder"))  # which older files do not name
    other = replace(known, encoder="another")
    for run in (generate, partial(generate_kept, generator_sha256="")):
        with pytest.raises(HywuError, match="encoder 'another', but this generator reads 'an encoder'"):
            run(generator, other)


def test_bounds_are_kept(generator):
    condition = conditions(1, 2)
    free = generate(generator, condition)
    bound = float(total_norm(free).min()) / 2
    bounded = generate(generator, condition, Limits(max_norm=bound))
    torch.testing.assert_close(total_norm(bounded), torch.full((2,), bound))
    assert bounded.rows == free.rows


def test_a_repeated_condition_costs_nothing_and_is_the_same_bits(generator, passes):
    cache = MemoryCache(10**8)
    first, n_kept = generate_kept(generator, conditions(1), "g", [cache])
    assert (passes, n_kept) == ([1], 0)
    again, n_kept = generate_kept(generator, conditions(1), "g", [cache])
    assert (passes, n_kept) == ([1], 1)
    fresh, _ = generate_kept(generator, conditions(1), "g")
    assert passes == [1, 1]
    assert same(first, again)
    assert same(first, fresh)
    assert again.rows == fresh.rows
    assert again.provenance == fresh.provenance


def test_the_generator_is_loaded_only_for_what_is_new_and_keys_are_of_where_it_runs(generator):
    cache, loads = MemoryCache(10**8), []

    def run(*which: int, device: str = "cpu") -> int:
        settings = {"load": lambda: loads.append(which), "load_device": device}
        return generate_kept(generator, conditions(*which), "g", [cache], **settings)[1]

    assert run(1, 2) == 0
    assert run(2, 1) == 2
    assert run(1, 3, 4) == 1
    assert loads == [(1, 2), (1, 3, 4)]
    assert run(1, device="cuda:0") == 0  # another kind of device rounds in another way


def test_of_a_batch_only_what_is_new_is_computed(generator, passes):
    cache = MemoryCache(10**8)
    known, _ = generate_kept(generator, conditions(1, 2, 3), "g", [cache])
    assert passes == [1, 1, 1]
    passes.clear()
    together, n_kept = generate_kept(generator, conditions(3, 9, 1, 2, 9), "g", [cache])
    assert (passes, n_kept) == ([1], 3)
    assert [row["prompt"] for row in together.rows] == ["do 3", "do 9", "do 1", "do 2", "do 9"]
    for row, origin in ((0, 2), (2, 0), (3, 1)):
        assert same(together.select(row), known.select(origin))
    assert same(together.select(1), together.select(4))
    single = generate(generator, conditions(9))
    for name in single:
        torch.testing.assert_close(together[name][1][1:2], single[name][1], atol=1e-5, rtol=1e-5)


def test_the_same_tokens_under_other_words_are_one_entry_with_their_own_words(generator, passes):
    cache = MemoryCache(10**8)
    tokens = conditions(4).tokens
    for words in ("one way", "another way"):
        adapter, _ = generate_kept(generator, Condition(tokens, prompts=(words,)), "g", [cache])
        assert adapter.rows[0]["prompt"] == words
    assert passes == [1]


def test_another_generator_is_another_entry(generator, passes):
    cache = MemoryCache(10**8)
    for name in ("g", "h"):
        generate_kept(generator, conditions(1), name, [cache])
    assert (len(passes), len(cache)) == (2, 2)


def test_what_a_slow_cache_has_goes_into_the_fast_one(generator, passes):
    fast, slow = MemoryCache(10**8), MemoryCache(10**8)
    generate_kept(generator, conditions(1), "g", [slow])
    _, n_kept = generate_kept(generator, conditions(1), "g", [fast, slow])
    assert (passes, n_kept, len(fast)) == ([1], 1, 1)


def test_progress_goes_through_all_that_is_new(generator):
    cache = MemoryCache(10**8)
    generate_kept(generator, conditions(5), "g", [cache])
    seen = []
    generate_kept(generator, conditions(6, 5, 7), "g", [cache], lambda *step: seen.append(step))
    blocks = len(SPEC.bands) * generator.config.n_layers
    assert seen == [(i, 2 * blocks) for i in range(1, 2 * blocks + 1)]


def test_a_cancelled_batch_keeps_what_was_finished(generator, passes):
    class Cancelled(Exception):
        pass

    def cancel_in_the_second(done: int, total: int) -> None:
        if done > total // 3:
            raise Cancelled

    cache = MemoryCache(10**8)
    with pytest.raises(Cancelled):
        generate_kept(generator, conditions(1, 2, 3), "g", [cache], cancel_in_the_second)
    assert (passes, len(cache)) == ([1], 1)
    _, n_kept = generate_kept(generator, conditions(1, 2, 3), "g", [cache])
    assert n_kept == 1


def test_values_that_are_not_finite_are_refused_and_not_kept(generator):
    broken = new_generator()
    broken.proj_out_B.bias[0] = float("nan")
    cache = MemoryCache(10**8)
    with pytest.raises(HywuError, match="NaN or infinite"):
        generate_kept(broken, conditions(1), "g", [cache])
    assert len(cache) == 0


def test_a_fingerprint_is_of_everything_that_decides(generator):
    known = fingerprint(generator)
    assert len(known) == 64
    assert fingerprint(new_generator()) == known
    assert fingerprint(new_generator(seed=1)) != known
    assert fingerprint(new_generator(rope_theta=5000.0)) != known
    assert fingerprint(new_generator().to(torch.bfloat16)) != known
    one_bit = new_generator()
    weight = one_bit.blocks[1].feed_forward.fc2.weight
    weight.view(torch.int32)[-1, -1] ^= 1
    assert fingerprint(one_bit) != known
    renamed = new_generator()
    renamed.provenance = {"recipe": "another"}
    assert fingerprint(renamed) == known
