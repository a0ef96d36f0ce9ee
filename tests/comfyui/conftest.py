"""Real servers for the tests in this folder: every ComfyUI there is, with random-weight models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hywu_core import LoraSpec, save_adapter
from hywu_core.backbones.embedded import EmbeddedBackbone
from hywu_core.embedded import AUTOENCODER, BACKBONE, GENERATOR, ROOT
from hywu_core.embedded.text import TEXT_ENCODER

from . import tiny
from .graphs import Untouched
from .server import PACK, ComfyServer, Install, find_installs

INSTALLS, MISSING = find_installs()


@pytest.fixture(scope="session", params=INSTALLS or [None], ids=lambda i: i.version if i else "none")
def install(request: pytest.FixtureRequest) -> Install:
    """Every ComfyUI in turn; a skip that says what is missing where there is none."""
    if request.param is None:
        pytest.skip(MISSING)
    return request.param


@dataclass(frozen=True)
class World:
    """Random-weight models as files, and their backbone."""

    folder: Path
    backbone: EmbeddedBackbone

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One folder of files that all servers are given."""
    pytest.importorskip("diffusers", reason="the random backbone is made with diffusers")
    folder = tmp_path_factory.mktemp("world")
    backbone = tiny.write_backbone(folder / "random_backbone.safetensors")
    spec = LoraSpec.from_module(backbone.transformer, rank=tiny.RANK, alpha=tiny.RANK)
    tiny.write_autoencoder(folder / "random_autoencoder.safetensors")
    tiny.write_text_encoder(folder / "random_text_encoder.safetensors")
    tiny.write_generator(folder / "random_generator.safetensors", spec)
    tiny.write_generator(folder / "fresh_generator.safetensors", spec, fresh=True)
    return World(folder, backbone)


@pytest.fixture(scope="session")
def side_path_files(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder for `inside` scripts: a random FLUX and three random LoRAs for it."""
    work = tmp_path_factory.mktemp("side_path")
    shutil.copy(world / "random_backbone.safetensors", work / "backbone.safetensors")
    adapter = tiny.random_adapter(world.backbone, batch=3)
    for i in range(3):
        save_adapter(adapter, work / f"adapter_{i}.safetensors", index=i, key_format="diffusers")
    return work


@pytest.fixture(scope="session")
def _server(
    install: Install, world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ComfyServer, Untouched]]:
    server = ComfyServer(install, tmp_path_factory.mktemp("comfyui"))
    for name, kind in (
        ("random_backbone", "diffusion_models"),
        ("random_autoencoder", "vae"),
        ("random_generator", "hywu"),
        ("fresh_generator", "hywu"),
    ):
        shutil.copy(world / f"{name}.safetensors", server.folder("models", kind))
    server.install_pack()
    for name in ("trouble", "hand_over"):
        shutil.copy(
            Path(__file__).with_name(f"{name}.py"), server.folder("custom_nodes") / f"hywu_test_{name}.py"
        )
    for path, name in (
        (BACKBONE, "backbone"),
        (AUTOENCODER, "autoencoder"),
        (GENERATOR, "generator"),
        (TEXT_ENCODER, "text_encoder"),
    ):
        embedded = server.pack / "hywu_core" / "embedded" / path.relative_to(ROOT)
        if not embedded.exists():  # a checkout without weights: everything but their quality can be tested
            embedded.parent.mkdir(exist_ok=True)
            shutil.copy(world / f"random_{name}.safetensors", embedded)
    server.put_image("photo.png", photograph())
    server.start()
    try:
        yield server, Untouched(server)
    finally:
        server.stop()


@pytest.fixture
def server(_server: tuple[ComfyServer, Untouched]) -> ComfyServer:
    """The running server of this install; its log of this test is attached to a failure."""
    _server[0].mark_log()
    return _server[0]


@pytest.fixture
def untouched(_server: tuple[ComfyServer, Untouched]) -> Untouched:
    """What the server drew when it was fresh."""
    return _server[1]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Attach what the server said to a failing test's report."""
    report = (yield).get_result()
    server = getattr(item, "funcargs", {}).get("server")
    if report.failed and server is not None:
        report.sections.append((f"ComfyUI {server.install.version} log", server.recent_log()))


def photograph() -> Image.Image:
    """A photograph held out of training, or if it is not shipped a picture with light, colour and edges."""
    if (path := PACK / "hywu_core" / "data" / "photos" / "mountains.jpg").exists():
        return Image.open(path).convert("RGB")
    y, x = np.mgrid[0:300, 0:400]
    waves = [np.sin(x / 23) * np.cos(y / 31), np.sin((x + y) / 40), (x % 50 > 25) * 2.0 - 1]
    return Image.fromarray(((np.stack(waves, axis=-1) + 1) * 127).astype(np.uint8))
