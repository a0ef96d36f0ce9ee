from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core.conditions import Condition
from hywu_core.errors import HywuError


def random_condition(batch: int, n_tokens: int, dim: int = 4, masked: bool = True) -> Condition:
    mask = torch.rand(batch, n_tokens) < 0.7
    mask[:, 0] = True
    return Condition(torch.randn(batch, n_tokens, dim), mask if masked else None)


def real_tokens(condition: Condition) -> list[torch.Tensor]:
    return [t if m is None else t[m] for t, m in zip(condition.tokens, mask_rows(condition), strict=True)]


def mask_rows(condition: Condition):
    return [None] * condition.batch if condition.mask is None else list(condition.mask)


@pytest.mark.parametrize(
    ("tokens", "mask", "complaint"),
    [
        (torch.zeros(3, 4), None, r"shape \(3, 4\)"),
        (torch.zeros(0, 3, 4), None, r"shape \(0, 3, 4\)"),
        (torch.zeros(2, 0, 4), None, r"shape \(2, 0, 4\)"),
        (torch.zeros(2, 3, 4, dtype=torch.long), None, "int64"),
        (torch.zeros(2, 3, 4), torch.ones(2, 4, dtype=torch.bool), r"shape \(2, 4\).*shape \(2, 3\)"),
        (torch.zeros(2, 3, 4), torch.ones(2, 3), "mask is torch.float32"),
    ],
)
def test_wrong_shapes_and_dtypes_are_named(tokens, mask, complaint):
    with pytest.raises(HywuError, match=complaint):
        Condition(tokens, mask)


def test_properties():
    condition = random_condition(2, 3, dim=5)
    assert (condition.batch, len(condition), condition.dim) == (2, 2, 5)
    assert condition.device == torch.device("cpu")


def test_to_casts_tokens_and_leaves_the_mask_bool():
    cast = random_condition(2, 3).to(device="cpu", dtype=torch.bfloat16)
    assert (cast.tokens.dtype, cast.mask.dtype) == (torch.bfloat16, torch.bool)
    assert random_condition(2, 3, masked=False).to(dtype=torch.float64).mask is None


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5), st.booleans()), min_size=1, max_size=4)
)
def test_stack_keeps_every_real_token_and_invents_none(shapes):
    conditions = [random_condition(batch, n, masked=masked) for batch, n, masked in shapes]
    stacked = Condition.stack(conditions)
    wanted = [tokens for c in conditions for tokens in real_tokens(c)]
    torch.testing.assert_close(real_tokens(stacked), wanted, rtol=0, atol=0)
    assert stacked.tokens.shape[1] == max(n for _, n, _ in shapes)
    assert stacked.tokens.isfinite().all()


def test_stack_without_padding_needs_no_mask():
    assert Condition.stack([random_condition(1, 3, masked=False)] * 2).mask is None


def test_indexing_and_stacking_are_inverse():
    condition = random_condition(3, 4)
    rows = list(condition)
    assert [c.batch for c in rows] == [1, 1, 1]
    again = Condition.stack(rows)
    assert again.tokens.equal(condition.tokens)
    assert again.mask.equal(condition.mask)
    assert condition[1:].tokens.equal(condition.tokens[1:])


def test_concat_joins_tokens_and_masks():
    image, text = random_condition(2, 3, masked=False), random_condition(2, 5)
    joined = Condition.concat([image, text])
    assert joined.tokens.equal(torch.cat([image.tokens, text.tokens], dim=1))
    assert joined.mask[:, :3].all()
    assert joined.mask[:, 3:].equal(text.mask)
    assert Condition.concat([image, image]).mask is None


def test_joining_what_does_not_fit_is_refused():
    with pytest.raises(HywuError, match=r"\[4, 5\] channels"):
        Condition.stack([random_condition(1, 2), random_condition(1, 2, dim=5)])
    with pytest.raises(HywuError, match=r"batches: \[1, 2\]"):
        Condition.concat([random_condition(1, 2), random_condition(2, 2)])
    with pytest.raises(HywuError, match="no conditions"):
        Condition.stack([])


def test_check_finds_what_is_not_finite_but_ignores_masked_tokens():
    condition = random_condition(2, 3)
    assert condition.check() is condition
    tokens, mask = condition.tokens.clone(), torch.ones(2, 3, dtype=torch.bool)
    tokens[1, 2] = float("inf")
    with pytest.raises(HywuError, match="1 of 6 condition tokens are not finite"):
        Condition(tokens, mask).check()
    mask[1, 2] = False
    Condition(tokens, mask).check()


def test_check_refuses_a_condition_without_tokens():
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(HywuError, match="Condition 1 of 2 has no token"):
        Condition(torch.zeros(2, 2, 3), mask).check()


def test_packing_keeps_real_tokens_in_order():
    condition = random_condition(4, 6)
    packed = condition.packed()
    torch.testing.assert_close(real_tokens(packed), real_tokens(condition), rtol=0, atol=0)
    lengths = condition.mask.sum(dim=1)
    assert packed.tokens.shape[1] == lengths.max()
    if packed.mask is not None:
        assert packed.mask.equal(torch.arange(lengths.max()) < lengths[:, None])
    assert packed.packed().tokens.equal(packed.tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_digest_is_of_the_real_content(dtype):
    tokens = torch.randn(2, 3, 4).to(dtype)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    condition = Condition(tokens, mask)
    changed = tokens.clone()
    changed[1, 2] = 9
    assert Condition(changed, mask).digests() == condition.digests()
    assert Condition(changed, torch.ones_like(mask)).digests()[0] == condition.digests()[0]
    assert Condition(changed, torch.ones_like(mask)).digests()[1] != condition.digests()[1]
    changed[0, 0, 0] += 1
    assert Condition(changed, mask).digests()[0] != condition.digests()[0]
    assert Condition(tokens).digests() == Condition(tokens, torch.ones_like(mask)).digests()
    assert Condition(tokens.requires_grad_()).digests()
    assert Condition(tokens, prompts=("a", "b")).digests() == Condition(tokens).digests()


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), masked=st.booleans())
def test_a_condition_has_one_digest_alone_and_in_any_batch(lengths, masked):
    alone = [random_condition(1, n, masked=masked) for n in lengths]
    together = Condition.stack(alone)
    assert together.digests() == tuple(c.digests()[0] for c in alone)
    assert len(set(together.digests())) == len(alone)
    assert together[[-1, 0]].digests() == (together.digests()[-1], together.digests()[0])


def test_a_condition_alone_has_no_padding():
    mask = torch.tensor([[True, True, False], [True, False, True], [True, True, True]])
    condition = Condition(torch.randn(3, 3, 4), mask, ("a", "b", "c"))
    first, second, third = (condition.alone(i) for i in range(3))
    assert first.tokens.equal(condition.tokens[:1, :2])
    assert first.mask is None
    assert second.mask.tolist() == [[True, False, True]]  # a hole counts: positions are read
    assert third.mask is None
    assert (first.prompts, third.prompts) == (("a",), ("c",))


def test_instructions_go_with_their_conditions():
    condition = Condition(torch.randn(3, 2, 4), prompts=("a", "b", "c"))
    assert condition[1].prompts == ("b",)
    assert condition[1:].prompts == ("b", "c")
    assert condition[[2, 0]].prompts == ("c", "a")
    assert condition.to(dtype=torch.bfloat16).packed().prompts == ("a", "b", "c")
    assert Condition.stack([condition, condition[0]]).prompts == ("a", "b", "c", "a")
    assert Condition.stack([condition, random_condition(1, 2)]).prompts is None
    assert Condition.concat([random_condition(3, 1), condition]).prompts == ("a", "b", "c")
    with pytest.raises(HywuError, match="batch of 3 conditions was given 1 instructions"):
        Condition(condition.tokens, prompts=("a",))


def test_the_encoder_goes_with_its_conditions_and_is_no_part_of_the_digest():
    unknown = random_condition(3, 4)
    known = replace(unknown, encoder="a")
    derived = known[1:], known.to(dtype=torch.float64), known.packed(), known.alone(0)
    assert {part.encoder for part in derived} == {"a"}
    assert Condition.stack([known, known]).encoder == "a"
    assert Condition.stack([known, unknown]).encoder is None
    assert known.digests() == unknown.digests()
    with pytest.raises(HywuError, match=r"different encoders: they are of \['a', 'b'\]"):
        Condition.stack([known, replace(known, encoder="b")])
