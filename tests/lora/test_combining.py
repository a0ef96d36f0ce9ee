"""What people do with adapters, against the same arithmetic on whole matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core.errors import HywuError
from hywu_core.lora import Adapter, load_adapter, save_adapter
from hywu_core.lora.algebra import join
from hywu_core.lora.combining import combine_adapters

SHAPES = {"wide": (6, 3), "tall": (2, 7), "square": (4, 4), "experts": (3, 5)}


@st.composite
def adapters(draw, batch=None, dtypes=(torch.float32,)):
    names = draw(st.lists(st.sampled_from(list(SHAPES)), min_size=1, unique=True))
    rank = draw(st.integers(1, 5))
    batch = batch or draw(st.integers(1, 3))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    pairs = {}
    for name in names:
        d_in, d_out = SHAPES[name]
        experts = (2,) if name == "experts" else ()
        A = torch.randn(batch, *experts, rank, d_in, generator=random)
        pairs[name] = A, torch.randn(batch, *experts, d_out, rank, generator=random)
    scale = draw(st.sampled_from([1.0, 0.25, -2.0]))
    return Adapter(pairs, scale, {"base": "x", "by": str(scale)}).to(dtype=draw(st.sampled_from(dtypes)))


def dense(adapter, name):
    """(batch, [experts,] d_out, d_in); zero where the adapter lacks the target."""
    if name not in adapter:
        d_in, d_out = SHAPES[name]
        return torch.zeros(adapter.batch, *((2,) if name == "experts" else ()), d_out, d_in)
    A, B = adapter[name]
    return adapter.scale * B.float() @ A.float()


def assert_updates(result, expected, names):
    assert result.keys() == names
    for name in names:
        torch.testing.assert_close(dense(result, name), expected(name), rtol=1e-4, atol=1e-4)


def pairs_of_adapters():
    """Equal batches, or one against several."""
    return st.integers(1, 3).flatmap(
        lambda n: st.sampled_from([(n, n), (1, n), (n, 1)]).flatmap(
            lambda batches: st.tuples(adapters(batches[0]), adapters(batches[1]))
        )
    )


AMOUNT = st.sampled_from([0.0, 1.0, 0.5, -1.5, 3.0])


@settings(deadline=None, max_examples=60)
@given(pairs_of_adapters(), AMOUNT)
def test_mixing_and_adding_are_those_of_the_dense_updates(pair, amount):
    a, b = pair
    names = a.keys() | b.keys()
    mixed, _ = combine_adapters("interpolate", a, b, amount)
    assert_updates(mixed, lambda n: (1 - amount) * dense(a, n) + amount * dense(b, n), names)
    added, _ = combine_adapters("add", a, b, amount)
    assert_updates(added, lambda n: dense(a, n) + amount * dense(b, n), names)
    assert added.batch == max(a.batch, b.batch)
    assert added.rank <= a.rank + b.rank


@settings(deadline=None, max_examples=40)
@given(adapters(), adapters(), AMOUNT)
def test_averages_scales_and_batches_are_those_of_the_dense_updates(a, b, amount):
    names = a.keys() | b.keys()
    mean, _ = combine_adapters("average", a, b)
    assert_updates(mean, lambda n: torch.cat([dense(a, n), dense(b, n)]).mean(0, keepdim=True), names)
    own, _ = combine_adapters("average", a)
    assert_updates(own, lambda n: dense(a, n).mean(0, keepdim=True), a.keys())
    scaled, _ = combine_adapters("scale", a, b, amount)
    assert_updates(scaled, lambda n: amount * dense(a, n), a.keys())
    both, _ = combine_adapters("batch", a, b)
    assert_updates(both, lambda n: torch.cat([dense(a, n), dense(b, n)]), names)
    assert (both.batch, both.rank) == (a.batch + b.batch, max(a.rank, b.rank))


@settings(deadline=None, max_examples=40)
@given(
    pairs_of_adapters(),
    st.sampled_from(["interpolate", "add", "average", "scale", "batch"]),
    st.integers(1, 8),
)
def test_a_rank_bound_gives_the_best_of_that_rank_and_never_more(pair, operation, bound):
    a, b = pair
    exact, _ = combine_adapters(operation, a, b, 0.75)
    short, _ = combine_adapters(operation, a, b, 0.75, max_rank=bound)
    assert short.rank == min(bound, exact.rank)
    for name in exact:
        whole = dense(exact, name)
        lost = torch.linalg.svdvals(whole)[..., bound:].square().sum(-1).sqrt()
        error = (whole - dense(short, name)).flatten(-2).norm(dim=-1)
        torch.testing.assert_close(error, lost, rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=20)
@given(adapters(2), adapters(2))
def test_a_batch_is_joined_bit_by_bit_where_nothing_must_be_scaled(a, b):
    b = Adapter(b, a.scale)
    both = join([a, b])
    for name in a.keys() & b.keys():
        for adapter, rows in ((a, slice(0, 2)), (b, slice(2, 4))):
            A, B = (tensor[rows] for tensor in both[name])
            assert torch.equal(A[..., : adapter.rank, :], adapter[name][0])
            assert torch.equal(B[..., : adapter.rank], adapter[name][1])
            assert not A[..., adapter.rank :, :].any()


def test_what_both_agree_on_is_kept_and_the_rest_is_not_claimed():
    pair = (torch.ones(1, 2, 3), torch.ones(1, 4, 2))
    a = Adapter({"x": pair}, provenance={"base": "m", "condition_sha256": "1"})
    b = Adapter({"x": pair}, provenance={"base": "m", "condition_sha256": "2"})
    told = {"interpolate": "interpolate 0.5", "add": "add 0.5", "average": "average", "scale": "scale 0.5"}
    for operation, words in told.items():
        assert dict(combine_adapters(operation, a, b)[0].provenance) == {"base": "m", "combined": words}
    assert dict(combine_adapters("batch", a, b)[0].provenance) == {"base": "m"}


def test_the_file_of_a_combined_lora_says_how_it_came_about(tmp_path):
    pair = (torch.randn(1, 2, 3), torch.randn(1, 4, 2))
    a = Adapter({"x": pair}, provenance={"base": "m"}, rows=[{"condition_sha256": "1", "prompt": "p"}])
    scaled, _ = combine_adapters("scale", a, amount=-0.5, max_rank=1)
    loaded = load_adapter(save_adapter(scaled, tmp_path / "x.safetensors", include_prompt=True))
    assert (loaded.provenance["base"], loaded.provenance["combined"]) == ("m", "scale -0.5, max_rank 1")
    assert loaded.rows == ()
    again, _ = combine_adapters("add", loaded, a, 2.0)
    assert again.provenance["combined"] == "add 2 of (scale -0.5, max_rank 1) and (one as it was)"
    both, _ = combine_adapters("batch", loaded, a)
    assert both.provenance["combined"] == "batch of (scale -0.5, max_rank 1) and (one as it was)"
    assert [dict(row) for row in both.rows] == [{}, dict(a.rows[0])]
    for _ in range(12):
        again, _ = combine_adapters("add", again, again, max_rank=1)
    assert len(again.provenance["combined"]) <= 1000
    joined, _ = combine_adapters("batch", scaled, scaled)
    assert joined.provenance["combined"] == "scale -0.5, max_rank 1"
    assert combine_adapters("batch", a, a, max_rank=1)[0].provenance["combined"] == "batch, max_rank 1"


def test_what_is_known_of_each_lora_goes_with_it():
    pairs = {"x": (torch.ones(2, 2, 3), torch.ones(2, 4, 2))}
    a = Adapter(
        pairs, rows=[{"condition_sha256": "1", "prompt": "p"}, {"condition_sha256": "2", "prompt": "p"}]
    )
    b = a.select(0)
    assert [dict(row) for row in combine_adapters("batch", b, a)[0].rows] == [
        dict(a.rows[i]) for i in (0, 0, 1)
    ]
    for operation in ("interpolate", "add", "average", "scale"):  # of no condition alone
        assert combine_adapters(operation, a, b)[0].rows == ()
    other = Adapter(pairs, rows=[{"note": "x", "prompt": "p"}, {"prompt": "p"}])
    assert [dict(row) for row in combine_adapters("scale", other)[0].rows] == [{"note": "x"}, {}]
    assert combine_adapters("batch", a, b, max_rank=1)[0].rows[2] == b.rows[0]
    assert combine_adapters("add", a, Adapter(pairs))[0].rows == ()


def test_half_precisions_meet_in_the_wider_one():
    a = Adapter({"x": (torch.ones(1, 2, 3), torch.ones(1, 4, 2))}).to(dtype=torch.float16)
    b = Adapter({"x": (torch.ones(1, 1, 3), torch.ones(1, 4, 1))}).to(dtype=torch.bfloat16)
    for operation in ("interpolate", "batch"):
        assert combine_adapters(operation, a, b)[0].dtype == torch.float32
        assert combine_adapters(operation, a, a, max_rank=1)[0].dtype == torch.float16


def test_it_says_what_it_did():
    pair = (torch.ones(1, 2, 3), torch.ones(1, 4, 2))
    a = Adapter({"x": pair}, provenance={"base": "FLUX.1"})
    b = Adapter({"y": pair}, provenance={"base": "FLUX.2"})
    report = combine_adapters("add", a, b)[1]
    assert report == [
        "add: 1 of rank 2, from rank 2 and 2",
        "2 of 2 targets are in only one of them; the other counts as zero",
        "made for different backbones: FLUX.1 and FLUX.2",
    ]


@pytest.mark.parametrize(
    ("operation", "b", "max_rank", "message"),
    [
        ("interpolate", None, 0, "'interpolate' needs two adapters"),
        ("batch", None, 0, "'batch' needs two adapters"),
        ("multiply", None, 0, "Unknown operation 'multiply'"),
        ("scale", None, -1, "rank bound is -1"),
        ("add", Adapter({"x": (torch.ones(3, 2, 3), torch.ones(3, 4, 2))}), 0, "Batches of 2 and 3"),
        ("add", Adapter({"x": (torch.ones(1, 2, 5), torch.ones(1, 4, 2))}), 0, r"\(3, 4, .*\(5, 4, "),
        ("batch", Adapter({"x": (torch.ones(1, 2, 5), torch.ones(1, 4, 2))}), 0, "the same model"),
    ],
)  # fmt: skip
def test_what_cannot_be_combined_is_a_sentence(operation, b, max_rank, message):
    a = Adapter({"x": (torch.ones(2, 2, 3), torch.ones(2, 4, 2))})
    with pytest.raises(HywuError, match=message):
        combine_adapters(operation, a, b, 0.5, max_rank)
