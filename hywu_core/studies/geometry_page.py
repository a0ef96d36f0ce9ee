"""The interactive page of the geometry study: one HTML file that needs nothing else, not even a network.

The pictures of all pairs are two sheets of thumbnails inside the file; `geometry_page.html` is the template.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..storage import atomic_path
from .frame import Result
from .style import PALETTE

TEMPLATE = Path(__file__).with_name("geometry_page.html")
_PLACE = "/* the data */ null"
_LARGEST = 800_000  # bytes of a sheet; its quality is lowered until it fits
_QUALITIES = (70, 60, 50, 40, 30)


def write_page(
    path: Path, result: Result, prompts: Sequence[Sequence[str]], pictures: Sequence[Tensor]
) -> None:
    """Write the page; `prompts` and `pictures` (n, 2, 3, T, T), source and edit, of each operation."""
    texts = list(dict.fromkeys(prompt for said in prompts for prompt in said))
    number = {text: i for i, text in enumerate(texts)}
    data = {
        "operations": result["operations"],
        "families": result["families"],
        "clusters": result["clusters"],
        "colours": PALETTE,
        "points": result["points"],
        "texts": texts,
        "text": [number[prompt] for said in prompts for prompt in said],
        "size": int(pictures[0].shape[-1]),
        "columns": len(pictures[0]),
        "sources": _sheet([rows[:, 0] for rows in pictures]),
        "edits": _sheet([rows[:, 1] for rows in pictures]),
    }
    # "</" would end the script that the data stands in.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    page = TEMPLATE.read_text(encoding="utf-8").replace(_PLACE, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _sheet(rows: Sequence[Tensor]) -> dict[str, object]:
    """A JPEG, as a data URI, of rows of thumbnails (n, 3, T, T); equal rows once, and which is whose."""
    unique: list[Tensor] = []
    whose = []
    for row in rows:
        same = next((i for i, other in enumerate(unique) if other.equal(row)), None)
        if same is None:
            same = len(unique)
            unique.append(row)
        whose.append(same)
    size, columns = unique[0].shape[-1], len(unique[0])
    image = Image.new("RGB", (size * columns, size * len(unique)))
    for y, row in enumerate(unique):
        for x, picture in enumerate(row):
            image.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (x * size, y * size))
    for quality in _QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= _LARGEST:
            break
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return {"uri": uri, "row": whose, "rows": len(unique)}
