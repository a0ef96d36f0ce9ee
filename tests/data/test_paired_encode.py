"""From a folder of photographs to batches of latents, as a trainer does; nothing is encoded twice."""

import shutil

import pytest
import torch
from PIL import Image

from hywu_core.data.paired import EncodingCache, Encodings, PairedDataset, Picture
from hywu_core.data.paired.buckets import Buckets, group, layout_of
from hywu_core.data.paired.encode import fit
from hywu_core.data.paired.file_hashes import FileHashes
from hywu_core.data.paired.sampler import Batches
from hywu_core.data.photos import FOLDER
from hywu_core.embedded.autoencoder import TinyAutoencoder

PHOTOS = ("cat", "coffee", "pagoda")


@pytest.fixture
def dataset(tmp_path):
    for name in PHOTOS:
        for folder in ("targets", "sources"):
            (tmp_path / folder).mkdir(exist_ok=True)
            with Image.open(FOLDER / f"{name}.jpg") as photo:
                turned = photo.rotate(180) if folder == "targets" else photo
                turned.save(tmp_path / folder / f"{name}.png")
        (tmp_path / "targets" / f"{name}.txt").write_text("turn it round", encoding="utf-8")
    return tmp_path


def test_batches_of_latents(dataset, tmp_path):
    autoencoder, calls = TinyAutoencoder.load(), []

    @torch.no_grad()
    def encode(image):
        calls.append(tuple(image.shape))
        return autoencoder.encode(image)[0]

    def epoch() -> dict[int, torch.Tensor]:
        data, buckets = PairedDataset.load(dataset), Buckets(64 * 64, 16)
        encodings = Encodings(EncodingCache(tmp_path / "cache"), FileHashes(tmp_path / "cache"))
        layouts, groups = group(layout_of(sample, buckets) for sample in data)
        batches = Batches(groups, batch_size=2, repeats=data.samples.repeats)
        latents = {}
        for step in range(batches.steps_per_epoch):
            indices = batches.at(step)
            size = layouts[groups[indices[0]]].target
            stacked = torch.stack([encodings.image(data[i].target, size, "tiny", encode) for i in indices])
            controls = [encodings.image(data[i].controls[0], size, "tiny", encode) for i in indices]
            assert torch.stack(controls).shape == stacked.shape
            latents |= dict(zip(indices, stacked, strict=True))
        encodings.hashes.save()
        return latents

    first = epoch()
    assert len(first) == len(PHOTOS)
    assert len(calls) == 2 * len(PHOTOS)
    shutil.move(dataset / "targets" / "cat.png", dataset / "targets" / "renamed.png")
    shutil.move(dataset / "targets" / "cat.txt", dataset / "targets" / "renamed.txt")
    shutil.move(dataset / "sources" / "cat.png", dataset / "sources" / "renamed.png")
    second = epoch()
    assert len(calls) == 2 * len(PHOTOS)
    assert {tuple(x.flatten().tolist()) for x in first.values()} == {
        tuple(x.flatten().tolist()) for x in second.values()
    }


def test_conditions_are_told_apart_by_prompt_pictures_order_and_sizes(dataset, tmp_path):
    encodings = Encodings(EncodingCache(tmp_path / "cache"), FileHashes())
    one, other = (Picture(str(dataset / "sources" / f"{name}.png")) for name in PHOTOS[:2])
    made = []

    def encode(prompt, images):
        made.append(prompt)
        return {"tokens": torch.stack([image.mean() for image in images]) if images else torch.zeros(1)}

    asked = [
        ("a", [one], [(16, 16)], "e"),
        ("b", [one], [(16, 16)], "e"),
        ("a", [other], [(16, 16)], "e"),
        ("a", [one, other], [(16, 16)] * 2, "e"),
        ("a", [other, one], [(16, 16)] * 2, "e"),
        ("a", [one], [(32, 16)], "e"),
        ("a", [one], [(16, 16)], "f"),
        ("a", [], [], "e"),
    ]
    first = [encodings.condition(*arguments, encode) for arguments in asked]
    assert len(made) == len(asked)
    again = [encodings.condition(*arguments, encode) for arguments in asked]
    assert len(made) == len(asked)
    assert all(torch.equal(x["tokens"], y["tokens"]) for x, y in zip(first, again, strict=True))


def test_a_picture_is_fitted_from_its_middle(tmp_path):
    image = Image.new("RGB", (90, 30), "red")
    image.paste("blue", (30, 0, 60, 30))
    image.save(tmp_path / "a.png")
    pixels = fit(Picture(str(tmp_path / "a.png")), (16, 16))
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels[0, :, 2:-2, 2:-2].flatten(1).mean(1).tolist() == pytest.approx([0, 0, 1], abs=0.01)


@pytest.mark.parametrize(("width", "height"), [(5472, 3648), (700, 814)])
def test_a_picture_of_the_shape_of_its_bucket_is_fitted_whole(width, height, tmp_path):
    """The box is computed in floating point, where the whole width may come out a little larger."""
    Image.new("RGB", (width, height), "red").save(tmp_path / "a.png")
    size = Buckets(1024**2).size(width, height)
    assert fit(Picture(str(tmp_path / "a.png")), size).shape == (1, 3, *size)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
def test_the_header_tells_the_size_that_the_picture_has(ending, orientation, tmp_path):
    """Pillow turns a TIFF's size, and only that, as soon as it opens it; in some versions."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (90, 60)).save(tmp_path / f"a.{ending}", exif=exif)
    picture = Picture(str(tmp_path / f"a.{ending}"))
    assert picture.size() == picture.rgb().size == ((90, 60) if orientation < 5 else (60, 90))


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_picture_of_a_data_set_may_be_larger_than_pillow_lets_the_process_open(
    ending, tmp_path, monkeypatch
):
    Image.new("RGB", (90, 60)).save(tmp_path / f"a.{ending}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # what 179 megapixels are to a phone's 200
    picture = Picture(str(tmp_path / f"a.{ending}"))
    assert picture.size() == picture.rgb().size == (90, 60)
