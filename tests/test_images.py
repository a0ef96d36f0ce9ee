"""Photographs of every mode and orientation, and files that are no photographs."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, features

from hywu_core.errors import HywuError
from hywu_core.images import load_photo, read_photo, save_image, sheet, to_pil, to_tensor

GRADIENT = np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("photo.tiff" if mode in ("CMYK", "YCbCr") else "photo.png")
    image = Image.fromarray(GRADIENT)
    image = image.convert("L").convert(mode) if mode in ("LA",) else image.convert(mode)
    image.save(path)
    try:
        Image.open(path).load()
    except OSError as error:
        pytest.skip(f"This Pillow cannot read its own {mode} file: {error}")
    photo = load_photo(path)
    assert photo.shape == (1, 3, 40, 30)
    assert photo.dtype == torch.float32
    assert photo.min() >= 0
    assert photo.max() <= 1
    assert photo.std() > 0.1


def test_sixteen_bit_grey_keeps_its_tones(tmp_path):
    Image.fromarray(np.linspace(0, 65535, 40 * 30).reshape(40, 30).astype(np.uint16)).save(
        tmp_path / "scan.png"
    )
    photo = load_photo(tmp_path / "scan.png")
    assert photo.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("white", [1, 255, 65535])
@pytest.mark.parametrize("overshoot", [1, 1.2])
@pytest.mark.parametrize("wrong", [None, np.inf, -np.inf, np.nan, 1e6])
def test_floating_point_grey_keeps_its_tones_whatever_one_pixel_says(tmp_path, white, overshoot, wrong):
    shades = np.linspace(0, overshoot, 40 * 30, dtype=np.float32).reshape(40, 30)
    values = shades * white
    if wrong is not None:
        values[0, 0] = wrong
    Image.fromarray(values).save(tmp_path / "scan.tiff")
    photo = load_photo(tmp_path / "scan.tiff")
    assert np.abs(photo[0, 0].numpy() - shades.clip(0, 1))[:, 1:].max() < 1 / 200


def test_a_floating_point_picture_of_no_numbers_is_black(tmp_path):
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "scan.tiff")
    assert torch.equal(load_photo(tmp_path / "scan.tiff"), torch.zeros(1, 3, 8, 8))


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.fromarray(GRADIENT).save(tmp_path / "upright.jpg", exif=exif)
    assert load_photo(tmp_path / "upright.jpg").shape == (1, 3, 30, 40)


def test_transparency_lies_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert torch.equal(load_photo(tmp_path / "clear.png"), torch.ones(1, 3, 8, 8))


def test_a_text_file_is_no_photograph(tmp_path):
    (tmp_path / "notes.jpg").write_text("not a picture")
    with pytest.raises(HywuError, match="not an image"):
        load_photo(tmp_path / "notes.jpg")


def test_a_truncated_photograph_is_named(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(
        tmp_path / "a.jpg"
    )
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(HywuError, match="damaged"):
        load_photo(tmp_path / "a.jpg")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_a_damaged_avif_is_named(tmp_path):
    Image.fromarray(GRADIENT).save(tmp_path / "a.avif")
    before, start, pixels = (tmp_path / "a.avif").read_bytes().partition(b"mdat")
    (tmp_path / "a.avif").write_bytes(before + start + bytes(len(pixels)))
    with pytest.raises(HywuError, match=r"a\.avif is damaged: Failed to decode frame 0"):
        load_photo(tmp_path / "a.avif")


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "ppm", "jp2"])
def test_a_photograph_may_be_larger_than_pillow_lets_the_process_open(tmp_path, monkeypatch, kind):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(GRADIENT).save(path)
    usual = load_photo(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # what 179 megapixels are to a phone's 200
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    assert torch.equal(load_photo(path), usual)
    assert torch.equal(to_tensor(read_photo(io.BytesIO(path.read_bytes()), "a")), usual)
    path.unlink()  # which Windows refuses for a file that is still open
    assert Image.MAX_IMAGE_PIXELS == 500


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_more_than_a_gigapixel_is_refused_before_memory_is_spent(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    (tmp_path / "a.ppm").write_bytes(b"P6 40000 30000 255 ")
    with pytest.raises(HywuError, match=r"a\.ppm has 40000 x 30000 pixels; at most 1,073,741,824 are read"):
        load_photo(tmp_path / "a.ppm")


def test_what_a_reader_itself_refuses_says_so(tmp_path, monkeypatch):
    Image.fromarray(GRADIENT).save(tmp_path / "a.gif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(HywuError, match=r"a\.gif is too large: .*1200 pixels.* limit of 1000 pixels"):
        load_photo(tmp_path / "a.gif")


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    save_image(Image.new("RGB", (4, 4), "red"), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def full_disk(self, file, *args, **kwargs):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(HywuError, match="No space left"):
        save_image(Image.new("RGB", (4, 4), "blue"), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_sheet_shows_its_pictures_unchanged():
    image = torch.rand(3, 16, 20)
    page = sheet([("caption", (image, image))], ("a", "b"))
    found = np.asarray(page)
    tile = np.asarray(to_pil(image))
    assert any(
        np.array_equal(found[y : y + 16, x : x + 20], tile)
        for y in range(page.height - 15)
        for x in range(page.width - 19)
    )
