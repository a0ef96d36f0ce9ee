"""A small data set of real photographs, each turned round."""

from pathlib import Path

from PIL import Image

from hywu_core.data.photos import FOLDER

PHOTOS = ("cat", "coffee", "pagoda", "mountains")


def photograph(name: str, turn: int = 0) -> Image.Image:
    """A small photograph, turned by quarters."""
    with Image.open(FOLDER / f"{name}.jpg") as image:
        return image.convert("RGB").resize((96, 64)).rotate(90 * turn, expand=True)


def save(image: Image.Image, path: Path, **options) -> None:
    """Write an image; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write_edits(folder: Path) -> Path:
    """Four photographs turned round, with captions, and their sources."""
    for name in PHOTOS:
        save(photograph(name, 2), folder / "targets" / f"{name}.png")
        (folder / "targets" / f"{name}.txt").write_text(f"turn {name} round", encoding="utf-8")
        save(photograph(name), folder / "sources" / f"{name}.png")
    return folder
