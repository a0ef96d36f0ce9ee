"""`python -m hywu_core.edit` as people use it: on photographs of every kind, and with everything wrong."""

import errno
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hywu_core import attach, load_adapter, load_generator
from hywu_core.backbones.sampling import euler, seeded_noise
from hywu_core.cli import command
from hywu_core.data.photos import FOLDER
from hywu_core.edit import main
from hywu_core.embedded import GENERATOR
from hywu_core.embedded.sizing import fit_image, working_size
from hywu_core.errors import HywuError
from hywu_core.generator import save_generator
from hywu_core.images import load_photo
from hywu_core.pipeline import HywuPipeline

from .commands import contents, refused, run, sentence_of

MODULE = "hywu_core.edit"
PHOTO = FOLDER / "coffee.jpg"  # never trained on
PANEL = (6, 40)  # where the first picture of a comparison starts, right and down
GAP = 6


def pixels(path: Path) -> np.ndarray:
    """A picture (H, W, 3) in [0, 1]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.float32) / 255


def panel(comparison: np.ndarray, column: int, like: np.ndarray) -> np.ndarray:
    """One picture of a comparison (photograph, frozen base, HY-WU)."""
    height, width = like.shape[:2]
    left, top = PANEL[0] + column * (width + GAP), PANEL[1]
    return comparison[top : top + height, left : left + width]


@pytest.fixture(scope="module")
def pipeline() -> HywuPipeline:
    return HywuPipeline.from_embedded()


@pytest.fixture
def edit(pipeline, monkeypatch):
    """The command in this process, on models that are loaded once."""
    monkeypatch.setattr(HywuPipeline, "from_embedded", lambda generator, device: pipeline)
    return lambda *arguments: command(lambda: main([str(argument) for argument in arguments]))


@dataclass(frozen=True)
class Edited:
    """A run of the command in a process of its own, and its folder."""

    process: subprocess.CompletedProcess[str]
    folder: Path


@pytest.fixture(scope="module")
def edited(tmp_path_factory) -> Edited:
    folder = tmp_path_factory.mktemp("edited")
    options = ("-o", "out.png", "--compare", "--adapter-out", "a.safetensors", "--seed", 3, "--strength", 0.8)
    return Edited(run(MODULE, PHOTO, "make it darker", *options, "--steps", 4, folder=folder), folder)


def test_the_command_writes_what_was_asked_for_and_says_so(edited):
    assert edited.process.returncode == 0, edited.process.stderr
    assert set(contents(edited.folder)) == {"out.png", "out_compare.png", "a.safetensors"}
    assert edited.process.stdout == "Wrote out.png, out_compare.png, a.safetensors.\n"


def test_progress_is_shown_while_it_works(edited):
    assert re.search(r"editing: +\d+%.*8/8", edited.process.stderr)  # four steps for each of two pictures


def test_the_edit_is_what_was_asked_for(edited):
    source = fit_image(load_photo(PHOTO))
    assert pixels(edited.folder / "out.png").mean() < float(source.mean()) - 0.05


def test_the_comparison_shows_photograph_base_and_edit(edited):
    out, comparison = pixels(edited.folder / "out.png"), pixels(edited.folder / "out_compare.png")
    source = fit_image(load_photo(PHOTO))[0].permute(1, 2, 0).numpy()
    assert np.abs(panel(comparison, 0, out) - source).max() <= 1 / 255
    assert np.array_equal(panel(comparison, 2, out), out)
    assert not np.array_equal(panel(comparison, 1, out), out)


@torch.no_grad()
def test_the_saved_adapter_attached_by_hand_gives_the_same_picture(edited, pipeline):
    source = fit_image(load_photo(PHOTO))
    latents, text = pipeline.autoencoder.encode(source), pipeline.text_encoder.encode(["make it darker"])

    def velocity(x, time):
        return pipeline.backbone(x, torch.full((1,), time), latents, text)

    with attach(pipeline.backbone.transformer, load_adapter(edited.folder / "a.safetensors")):
        result = euler(velocity, seeded_noise(latents.shape, 3), 4)
    image = pipeline.autoencoder.decode(result)[0].permute(1, 2, 0).numpy()
    assert np.abs(image - pixels(edited.folder / "out.png")).mean() <= 1 / 255


def test_the_saved_adapter_says_where_it_came_from(edited):
    saved = load_adapter(edited.folder / "a.safetensors")
    provenance = saved.provenance
    assert provenance["base"] == "hywu_embedded_flux_kontext"
    assert provenance["encoder"] == "hywu-embedded-1"
    assert float(provenance["strength"]) == 0.8
    assert len(provenance["generator_sha256"]) == len(saved.rows[0]["condition_sha256"]) == 64


def test_the_seed_decides_the_picture(edit, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert edit(PHOTO, "warmer", "-o", tmp_path / f"{name}.png", "--seed", seed, "--steps", 1) == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("shape", [(1, 3, 24, 24), (1, 3, 32, 24), (1, 3, 0, 16)])
def test_images_taken_as_they_are_must_have_whole_tokens(pipeline, shape):
    with pytest.raises(HywuError, match=rf"{shape[3]} x {shape[2]} pixels; .* multiples of 16"):
        pipeline.read(torch.zeros(shape), ["darker"], area=None)


@pytest.mark.parametrize("area", [None, 64 * 64])
@pytest.mark.parametrize("shape", [(1, 4, 32, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_images_of_other_channels_are_a_sentence(pipeline, shape, area):
    with pytest.raises(HywuError, match=rf"shape {re.escape(str(shape))}; they must be \(batch, 3"):
        pipeline.read(torch.zeros(shape), ["darker"] * shape[0], area)


def test_every_seed_of_the_sampler_node_is_one(edit, tmp_path):
    assert edit(PHOTO, "darker", "-o", tmp_path / "out.png", "--steps", 1, "--seed", 2**64 - 1) == 0


def test_strength_nought_is_the_frozen_base(edit, tmp_path):
    options = ("--strength", 0, "--steps", 1, "--compare")
    assert edit(PHOTO, "warmer", "-o", tmp_path / "out.png", *options) == 0
    out = pixels(tmp_path / "out.png")
    assert np.array_equal(panel(pixels(tmp_path / "out_compare.png"), 1, out), out)


GRADIENT = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
GREY16 = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # the camera was held upright


@pytest.mark.parametrize(
    ("name", "image", "options", "size"),
    [
        ("rgba.png", Image.fromarray(GRADIENT).convert("RGBA"), {}, (48, 64)),
        ("grey.png", Image.fromarray(GRADIENT).convert("L"), {}, (48, 64)),
        ("palette.gif", Image.fromarray(GRADIENT).convert("P"), {}, (48, 64)),
        ("scan.tiff", Image.fromarray(GREY16), {}, (48, 64)),
        ("turned.jpg", Image.fromarray(GRADIENT), {"exif": TURNED}, (64, 48)),
        ("tiny.png", Image.fromarray(GRADIENT[:3, :5]), {}, (3, 5)),
        ("dot.png", Image.fromarray(GRADIENT[:1, :1]), {}, (1, 1)),
        ("panorama.jpg", Image.fromarray(GRADIENT).resize((1500, 90)), {}, (90, 1500)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_photographs_of_every_kind(edit, tmp_path, name, image, options, size):
    image.save(tmp_path / name, **options)
    out = tmp_path / "out.jpg"
    assert edit(tmp_path / name, "把它变暗", "-o", out, "--steps", 1) == 0
    assert pixels(out).shape == (*working_size(*size), 3)


@pytest.mark.parametrize("words", ["🙂?!", "把它变暗\n\n" + "please, make it darker " * 100])
def test_any_words_are_read(edit, tmp_path, words):
    assert edit(PHOTO, words, "-o", tmp_path / "out.png", "--steps", 1, "--compare") == 0


@pytest.mark.parametrize("strength", ["1e20", "-1e29"])
def test_a_strength_that_is_too_large_is_a_sentence_and_writes_nothing(edit, tmp_path, capfd, strength):
    files = ("-o", tmp_path / "out.png", "--compare", "--adapter-out", tmp_path / "a.safetensors")
    assert edit(PHOTO, "darker", *files, "--steps", 2, f"--strength={strength}") == 2
    assert re.fullmatch(
        rf"error: .*not finite .* strength {re.escape(f'{float(strength):g}')}.*",
        capfd.readouterr().err.splitlines()[-1],
    )
    assert contents(tmp_path) == {}


# What is wrong: arguments in place of PHOTO, instruction and `-o out.png`, and what the sentence must name.
WRONG = {
    "a text file as photograph": (("notes.jpg", "darker"), r"notes\.jpg"),
    "no photograph": (("none.jpg", "darker"), r"no photograph .*none\.jpg"),
    "a folder as photograph": ((".", "darker"), "no photograph"),
    "an empty instruction": ((PHOTO, " \n"), "instruction is empty"),
    "bytes that are no text": ((PHOTO, "\udcff"), "not text"),
    "no output folder": ((PHOTO, "darker", "-o", "none/out.png"), "folder none does not exist"),
    "no suffix": ((PHOTO, "darker", "-o", "out"), "image format"),
    "no image format": ((PHOTO, "darker", "-o", "out.mpg"), "image format"),
    "a folder as output": ((PHOTO, "darker", "-o", "folder.png"), "is a folder"),
    "output onto the photograph": (("photo.png", "darker", "-o", "photo.png"), "overwrite"),
    "comparison onto the photograph": (
        ("photo_compare.png", "darker", "-o", "photo.png", "--compare"),
        "overwrite",
    ),
    "adapter onto the generator": (
        (PHOTO, "darker", "--generator", "whole.safetensors", "--adapter-out", "whole.safetensors"),
        "overwrite",
    ),
    "an adapter of another name": ((PHOTO, "darker", "--adapter-out", "a.ckpt"), r"\.safetensors"),
    "no adapter folder": ((PHOTO, "darker", "--adapter-out", "none/a.safetensors"), "folder none"),
    "no steps": ((PHOTO, "darker", "--steps", "0"), "--steps is 0"),
    "a negative seed": ((PHOTO, "darker", "--seed", "-1"), "--seed is -1"),
    "a seed beyond 64 bits": ((PHOTO, "darker", "--seed", 2**64), "--seed is 18446744073709551616;"),
    "strength beyond float32": ((PHOTO, "darker", "--strength", "1e40"), r"--strength is 1e\+40"),
    "strength that is no number": ((PHOTO, "darker", "--strength", "nan"), "--strength is nan"),
    "no such device": ((PHOTO, "darker", "--device", "abacus"), "'abacus' is not available"),
    "a device that torch has no module for": ((PHOTO, "darker", "--device", "hpu"), "'hpu' is not available"),
    "a device without numbers": ((PHOTO, "darker", "--device", "meta"), "'meta' is not available"),
    "no generator": ((PHOTO, "darker", "--generator", "none.safetensors"), r"none\.safetensors"),
    "a truncated generator": ((PHOTO, "darker", "--generator", "half.safetensors"), r"half\.safetensors"),
    "a text file as generator": ((PHOTO, "darker", "--generator", "notes.jpg"), r"notes\.jpg"),
    "a foreign generator": ((PHOTO, "darker", "--generator", "foreign.safetensors"), "not a HY-WU generator"),
    "a generator for another backbone": (
        (PHOTO, "darker", "--generator", "qwen.safetensors"),
        "'qwen_image_edit'.*'embedded'",
    ),
    "a generator for another file of the backbone": (
        (PHOTO, "darker", "--generator", "retrained.safetensors"),
        "'my_flux'.*'hywu_embedded_flux_kontext'",
    ),
    "a generator with NaN": ((PHOTO, "darker", "--generator", "nan.safetensors"), "not finite"),
}


@pytest.fixture(scope="module")
def wrong_files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "notes.jpg").write_text("Buy milk.")
    (folder / "folder.png").mkdir()
    for name in ("photo.png", "photo_compare.png"):
        Image.fromarray(GRADIENT).save(folder / name)
    whole = GENERATOR.read_bytes()
    (folder / "whole.safetensors").write_bytes(whole)
    (folder / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"lora_up": torch.zeros(2)}, folder / "foreign.safetensors")
    generator = load_generator(GENERATOR)
    kind = {"kind": "qwen_image_edit", "id": "Qwen/Qwen-Image-Edit-2509"}
    save_generator(folder / "qwen.safetensors", generator, backbone=kind, dtype=torch.float16)
    retrained = {"kind": "embedded", "id": "my_flux", "sha256": "0" * 64}
    save_generator(folder / "retrained.safetensors", generator, backbone=retrained, dtype=torch.float16)
    at = whole.rindex(whole[-64:-62])  # two bytes of the last tensor's values
    (folder / "nan.safetensors").write_bytes(whole[:at] + b"\xff\x7f" + whole[at + 2 :])
    return folder


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence_and_leaves_nothing(wrong_files, monkeypatch, capfd, case):
    arguments, named = WRONG[case]
    monkeypatch.chdir(wrong_files)
    assert re.search(named, refused(main, *arguments, folder=wrong_files, capfd=capfd))


def test_bad_input_in_a_process_of_its_own(wrong_files):
    before = contents(wrong_files)
    process = run(MODULE, PHOTO, "darker", "--generator", "qwen.safetensors", folder=wrong_files)
    assert "'qwen_image_edit'" in sentence_of(process.returncode, process.stdout, process.stderr)
    assert contents(wrong_files) == before


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_full_disk_leaves_nothing_whichever_file_meets_it(edit, tmp_path, monkeypatch, capfd, fails_at):
    (tmp_path / "out_compare.png").write_text("of an earlier run")
    done = []

    def fsync(_descriptor):
        done.append(1)
        if len(done) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    files = ("-o", tmp_path / "out.png", "--compare", "--adapter-out", tmp_path / "a.safetensors")
    assert edit(PHOTO, "darker", *files, "--steps", 1) == 2
    assert re.fullmatch("error: .*No space left on device.*", capfd.readouterr().err.splitlines()[-1])
    assert set(contents(tmp_path)) == {"out_compare.png"}


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.getuid() != 0, reason="only root can mount")
def test_a_disk_that_is_really_full(edit, tmp_path, capfd):
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        files = ("-o", tmp_path / "out.png", "--adapter-out", tmp_path / "a.safetensors")  # 1 MB
        assert edit(PHOTO, "darker", *files, "--steps", 1) == 2
        assert "No space left on device" in capfd.readouterr().err.splitlines()[-1]
        assert contents(tmp_path) == {}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_ctrl_c_is_one_word(edit, pipeline, tmp_path, monkeypatch, capfd):
    def interrupted(*_arguments, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(HywuPipeline, "draw", interrupted)
    assert edit(PHOTO, "darker", "-o", tmp_path / "out.png") == 130
    assert capfd.readouterr().err.splitlines()[-1] == "Stopped."
    assert contents(tmp_path) == {}
