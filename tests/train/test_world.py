"""What the embedded recipes learn from: sizes of pictures, and exact edits as latents."""

import pytest
import torch

from hywu_core.data.latents import LatentPool
from hywu_core.data.photos import load_tensors
from hywu_core.embedded.autoencoder import TinyAutoencoder
from hywu_core.embedded.sizing import MULTIPLE
from hywu_core.errors import HywuError
from hywu_core.train.hywu import HywuTrainingConfig
from hywu_core.train.world import FULL_SIZES, held_out_cases, sizes_about


def test_smaller_pictures_keep_their_shapes():
    assert sizes_about(256) == FULL_SIZES
    for pixels in (96, 128, 208):
        for (height, width), (h, w) in zip(sizes_about(pixels), FULL_SIZES, strict=True):
            assert height % MULTIPLE == width % MULTIPLE == 0
            assert height * width == pytest.approx(pixels**2, rel=0.3)
            assert (height < width, height > width) == (h < w, h > w)
    with pytest.raises(HywuError, match="pixels is 95; it must be at least 96"):
        sizes_about(95)


def test_fewer_shapes_are_different_ones():
    assert sizes_about(256, 3) == ((256, 256), (224, 288), (288, 224))
    assert sizes_about(128, 2) == ((128, 128), (112, 144))
    assert set(sizes_about(256, 7)) == set(FULL_SIZES)
    for shapes in (-1, 8):
        with pytest.raises(HywuError, match=f"shapes is {shapes}; it must be from 1 to 7, or 0 for all"):
            sizes_about(256, shapes)


def test_wordings_that_do_not_exist_are_not_left_out_in_silence():
    both = ("en", "zh")
    assert len(held_out_cases(["warm"], 3, 1, 96 * 96, languages=both)) == 6
    with pytest.raises(
        HywuError, match="wordings is 4; there are only 3 held-out phrases for warm in Chinese"
    ):
        held_out_cases(["warm"], 4, 1, 96 * 96, languages=both)
    assert len(held_out_cases(["warm"], 5, 1, 96 * 96)) == HywuTrainingConfig(wordings=5).wordings
    with pytest.raises(
        HywuError, match=r"wordings is 6; there are only 5 held-out phrases for .* in English"
    ):
        HywuTrainingConfig(wordings=6)


def test_edits_encoded_in_16_bits_are_nearly_the_same():
    photos, autoencoder = load_tensors("train"), TinyAutoencoder.load(device="cpu")

    def pool(half: bool) -> torch.Tensor:
        draws = torch.Generator().manual_seed(0)
        drawn = LatentPool(photos, ["brighten", "restore"], autoencoder, ((64, 64),), 2, draws, half=half)
        return drawn.sample(8, torch.Generator().manual_seed(1)).target

    full, half = pool(False), pool(True)
    assert half.is_contiguous()
    assert 0 < (half - full).std() < 0.01 * full.std()
