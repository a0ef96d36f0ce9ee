import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core.conditions import Condition
from hywu_core.errors import HywuError
from hywu_core.generator import GeneratorConfig, ParameterGenerator
from hywu_core.generator.initialise import token_gain
from hywu_core.lora import Adapter, Band, LoraSpec, ModuleShape
from hywu_core.tokens import TokenLayout, n_tokens

from ..released import RELEASED_BAND


def assert_same(adapter: Adapter, other: Adapter, **tolerance) -> None:
    assert list(adapter) == list(other)
    for name in adapter:
        torch.testing.assert_close(adapter[name], other[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def difference(adapter: Adapter, other: Adapter) -> float:
    pairs = [(t, u) for name in adapter for t, u in zip(adapter[name], other[name], strict=True)]
    return max(float((t - u).abs().max()) for t, u in pairs)


def weighted_sum(adapter: Adapter) -> torch.Tensor:
    """A loss in which no two values are interchangeable."""
    flat = torch.cat([t.flatten() for pair in adapter.values() for t in pair])
    return (flat * torch.linspace(-1, 1, len(flat))).sum()


def test_an_adapter_of_the_spec_comes_out(trained, condition, spec):
    adapter = trained(condition).check(spec)
    assert (adapter.batch, adapter.scale) == (3, spec.scale)


@pytest.mark.parametrize("output_gain", ["none", "fixed", "learned"])
def test_a_fresh_generator_changes_exactly_nothing(spec, condition, output_gain):
    config = GeneratorConfig(condition.dim, d_model=16, n_heads=2, output_gain=output_gain)
    for name, (A, B) in ParameterGenerator(config, spec)(condition).items():
        assert not B.any(), name
        assert A.any(), name


def test_a_starts_with_unit_variance_of_its_product_whatever_the_width():
    widths = (64, 1024)
    modules = tuple(ModuleShape(f"m{d}", d, 64) for d in widths)
    spec = LoraSpec((Band("layers", 3, modules),), rank=8)
    torch.manual_seed(0)
    generator = ParameterGenerator(GeneratorConfig(8, d_model=64, n_layers=1), spec)
    adapter = generator(Condition(torch.randn(2, 4, 8)))
    for d in widths:
        A = torch.cat([adapter[f"layers.{layer}.m{d}"][0] for layer in range(3)])
        assert 0.8 < float(A.detach().std()) * d**0.5 < 1.25


def test_gains_follow_the_tokens_of_their_target():
    band = Band("b", 1, (ModuleShape("x", 4, 2), ModuleShape("y", 16, 4, experts=2)))
    gain = token_gain(band, TokenLayout("rank_anchored", 4), rank=2, d_row=25)
    torch.testing.assert_close(gain, torch.tensor([0.5] + [0.25] * 8 + [0.2] * 3))


def test_the_same_seed_gives_the_same_generator(config, spec):
    def weights():
        torch.manual_seed(5)
        return ParameterGenerator(config, spec).state_dict()

    torch.testing.assert_close(weights(), weights(), rtol=0, atol=0)


def test_the_first_gradient_moves_b_and_the_next_one_everything(fresh, condition):
    weighted_sum(Adapter({n: (A.detach(), B) for n, (A, B) in fresh(condition).items()})).backward()
    moved = {name for name, p in fresh.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"proj_out_B.weight", "proj_out_B.bias"}

    torch.nn.init.normal_(fresh.proj_out_B.weight)
    fresh.zero_grad()
    weighted_sum(fresh(condition)).backward()
    assert {name for name, p in fresh.named_parameters() if p.grad is None or not p.grad.any()} == set()


def test_gradients_reach_the_condition(trained, condition):
    tokens = condition.tokens.clone().requires_grad_()
    weighted_sum(trained(Condition(tokens, condition.mask))).backward()
    assert (tokens.grad.abs().sum(dim=2) > 0).equal(condition.mask)


def test_a_batch_is_its_conditions_one_by_one(trained, condition):
    with torch.no_grad():
        together = trained(condition)
        alone = Adapter.stack([trained(one) for one in condition])
    assert_same(together, alone, atol=1e-5, rtol=1e-5)
    assert difference(together.select(0), together.select(1)) > 0.01


def test_progress_is_told_after_every_block_of_every_band(trained, condition):
    seen = []
    trained(condition, on_block=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_exception_in_the_progress_callback_cancels(trained, condition):
    def cancel(done, total):
        if done == 2:
            raise KeyboardInterrupt

    started = []
    trained.blocks[0].register_forward_pre_hook(lambda *_: started.append(1))
    with pytest.raises(KeyboardInterrupt):
        trained(condition, on_block=cancel)
    assert len(started) == 1  # the second band never began
    trained(condition)


def test_order_in_the_batch_does_not_matter(trained, condition):
    with torch.no_grad():
        assert_same(trained(condition[[2, 0, 1]]), trained(condition).select([2, 0, 1]), atol=1e-5, rtol=1e-5)


def test_order_of_condition_tokens_does_matter(trained, condition):
    full = Condition(condition.tokens)
    with torch.no_grad():
        assert difference(trained(full), trained(Condition(full.tokens.flip(1)))) > 1e-3


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_masked_tokens_have_no_influence(data):
    torch.manual_seed(data.draw(st.integers(0, 9)))
    spec = LoraSpec((Band("b", 2, (ModuleShape("m", 8, 8),)),), rank=2)
    generator = ParameterGenerator(GeneratorConfig(4, d_model=8, n_layers=2, n_heads=1), spec)
    torch.nn.init.normal_(generator.proj_out_B.weight)
    n_tokens = data.draw(st.integers(2, 6))
    real = data.draw(st.lists(st.booleans(), min_size=n_tokens, max_size=n_tokens).filter(any))
    mask = torch.tensor([real, [True] * n_tokens])
    tokens = torch.randn(2, n_tokens, 4)
    other = torch.where(mask[..., None], tokens, 100 * torch.randn_like(tokens))
    with torch.no_grad():
        assert_same(generator(Condition(tokens, mask)), generator(Condition(other, mask)), rtol=0, atol=0)


def test_padding_is_as_if_it_were_not_there(trained, condition):
    short = Condition(condition.tokens[:1, :3])
    padded = Condition.stack([short, condition])[0]
    assert padded.tokens.shape[1] == 5
    with torch.no_grad():
        assert_same(trained(short), trained(padded), atol=1e-5, rtol=1e-5)


def test_no_mask_is_a_mask_of_ones(trained, condition):
    ones = torch.ones_like(condition.mask)
    with torch.no_grad():
        masked, free = trained(Condition(condition.tokens, ones)), trained(Condition(condition.tokens))
    assert_same(masked, free, atol=1e-5, rtol=1e-5)


def test_nothing_is_computed_per_condition_before_the_first_look_at_it(trained, condition):
    batches = []
    first, second = trained.blocks
    for module in (first.layer_attention.qkv, first.token_attention.qkv, first.condition_attention.q):
        module.register_forward_pre_hook(lambda m, args: batches.append(args[0].numel()))
    trained(condition)
    one = [b.n_layers * sum(b.n_tokens) * b.n_ranks * trained.config.d_model for b in trained.bands]
    assert batches == [one[0]] * 3 + [one[1]] * 3
    later = []
    second.layer_attention.qkv.register_forward_pre_hook(lambda m, args: later.append(args[0].numel()))
    trained(condition)
    assert later == [3 * n for n in one]


def test_gradient_checkpointing_changes_no_gradient(trained, condition):
    def gradients():
        trained.zero_grad()
        weighted_sum(trained(condition)).backward()
        return {name: p.grad.clone() for name, p in trained.named_parameters()}

    stored = gradients()
    calls = []
    trained.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    trained.gradient_checkpointing = True
    torch.testing.assert_close(gradients(), stored)
    assert len(calls) == 2 * len(trained.bands)  # once forward, once again backward
    trained.eval()
    trained(condition)
    assert len(calls) == 3 * len(trained.bands)


def test_a_block_is_one_graph(trained, condition):
    wanted = trained(condition)
    for block in trained.blocks:
        block.compile(backend="eager", fullgraph=True)
    assert_same(trained(condition), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(trained, condition, dtype):
    with torch.no_grad():
        wanted = trained(condition)
        adapter = trained.to(dtype)(condition)
    assert adapter.dtype == dtype
    worst = 0.3 if dtype == torch.bfloat16 else 1e-4
    assert difference(adapter.to(dtype=torch.float32), wanted) < worst


def test_autocast_to_bfloat16_trains_float32_weights(trained, condition):
    with torch.autocast("cpu", torch.bfloat16):
        adapter = trained(condition)
    weighted_sum(adapter).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in trained.parameters())
    with torch.no_grad():
        assert difference(adapter, trained(condition)) < 0.3


def test_a_condition_of_another_encoder_is_refused(trained):
    trained.encoder_info = {"id": "google/siglip2"}
    with pytest.raises(HywuError, match=r"9 channels, but this generator reads 12; .* 'google/siglip2'"):
        trained(Condition(torch.randn(1, 2, 9)))


def test_learning_to_tell_conditions_apart(config, spec):
    """The smallest training: two conditions, two updates that are each other's opposite."""
    torch.manual_seed(0)
    generator = ParameterGenerator(config, spec)
    condition = Condition(torch.randn(2, 3, config.condition_dim))
    x = torch.randn(16, 16)
    y = 0.5 * torch.randn(16, 16) * torch.tensor([1.0, -1.0])[:, None, None]
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        A, B = generator(condition)["double.1.to_q"]
        loss = ((x @ A.mT @ B.mT - y) ** 2).mean() / (y**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(1.0)
    assert losses[-1] < 0.75


def test_the_released_generator_fits_the_same_class():
    """Published sizes: 719 + 660 tokens per layer, about 8.1B weights, 0.72B generated parameters."""
    spec = LoraSpec((RELEASED_BAND,), rank=16, alpha=64)
    layout = TokenLayout("flat", 1024)
    assert n_tokens(spec.bands[0], layout, spec.rank) == (719, 660)
    config = GeneratorConfig(4096, d_model=4096, n_layers=24, n_heads=32, accumulation=4, output_gain="none")
    with torch.device("meta"):
        generator = ParameterGenerator(config, spec, layout)
    shapes = {name: tuple(t.shape) for name, t in generator.state_dict().items()}
    assert shapes["bands.0.token_rank"] == (1379 * 16, 1024)
    assert shapes["bands.0.layer"] == (32, 1024)
    assert shapes["proj_out_B.weight"] == (1024, 1024)
    assert generator.n_parameters == pytest.approx(8.1e9, rel=1e-3)
    assert spec.n_parameters == pytest.approx(0.72e9, rel=0.01)
