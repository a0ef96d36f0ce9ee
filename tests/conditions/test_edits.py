"""How pictures and instructions of any number are joined to edits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hywu_core.conditions import join_edits, lines_of
from hywu_core.errors import HywuError


def several(count: int, mark: int = 0) -> list[torch.Tensor]:
    return [torch.full((3, 4 + i, 5), mark + i / 100) for i in range(count)]


@given(batch=st.integers(1, 5), single=st.sets(st.sampled_from(["prompt", "image", "image_2", "image_3"])))
def test_one_goes_with_all_and_each_has_its_own(batch, single):
    counts = {name: 1 if name in single else batch for name in ("prompt", "image", "image_2", "image_3")}
    prompts = [f"p{i}" for i in range(counts.pop("prompt"))]
    pictures = {name: several(count, mark) for mark, (name, count) in enumerate(counts.items())}
    edits, words = join_edits(prompts, pictures)
    assert len(edits) == len(words) == max(len(prompts), *counts.values())
    for i, (edit, text) in enumerate(zip(edits, words, strict=True)):
        assert text == prompts[i if len(prompts) > 1 else 0]
        for picture, given_ones in zip(edit, pictures.values(), strict=True):
            assert picture is given_ones[i if len(given_ones) > 1 else 0]


@pytest.mark.parametrize(
    ("n_prompts", "counts", "complaint"),
    [
        (3, {"image": 2}, r"2 pictures in image and 3 instructions"),
        (2, {"image": 3}, r"2 instructions and 3 pictures in image"),
        (1, {"image": 2, "image_2": 3}, r"2 pictures in image and 3 pictures in image_2"),
        (1, {"image": 4, "image_2": 1, "image_3": 2}, r"2 pictures in image_3 and 4 pictures in image"),
        (1, {"image": 0, "image_2": 1}, r"image_2 has pictures, but image has none"),
    ],
)
def test_counts_that_do_not_fit_are_both_named(n_prompts, counts, complaint):
    pictures = {name: several(count) for name, count in counts.items()}
    with pytest.raises(HywuError, match=complaint):
        join_edits(["p"] * n_prompts, pictures)


def test_instructions_need_words():
    with pytest.raises(HywuError, match="The instruction is empty"):
        join_edits(["good", " \n"], {"image": several(2)})
    with pytest.raises(HywuError, match="The instruction is empty"):
        lines_of(["\n  \n", ""])


def test_every_line_is_an_instruction():
    assert lines_of(["darken it\n\n  blur it \r\n", "把照片变亮"]) == ["darken it", "blur it", "把照片变亮"]
