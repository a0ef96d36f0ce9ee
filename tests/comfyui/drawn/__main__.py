"""Write `workflows/*.json` for the nodes as they are; `python -m tests.comfyui.drawn [NAME ...]`.

Each file is drawn with what the oldest ComfyUI it works on knows of its nodes: newer ones fill in what they
have more, older ones would drop it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..server import PACK, ComfyServer, Install, find_installs, version_numbers
from . import embedded, large
from .sheet import Sheet

Drawing = Callable[[Sheet], None]
ANYWHERE = (
    embedded.quickstart,
    embedded.batch_per_instance,
    embedded.save_and_reload,
    embedded.conflict,
    large.qwen_image_edit_2509,
    large.flux1_kontext,
)
SINCE: dict[str, tuple[Drawing, ...]] = {"0.8.0": (large.qwen_image_edit_2511,)}


def main() -> int:
    """Draw the named workflows, or all; 2 where a ComfyUI they need is not here."""
    parse = argparse.ArgumentParser(prog="python -m tests.comfyui.drawn", description=__doc__)
    parse.add_argument("names", nargs="*", help="workflows to draw (default: all)")
    names = set(parse.parse_args().names)
    installs, missing = find_installs()
    plans: list[tuple[str | None, tuple[Drawing, ...]]] = [(None, ANYWHERE), *SINCE.items()]
    for since, drawings in plans:
        wanted = [drawing for drawing in drawings if not names or drawing.__name__ in names]
        fitting = [i for i in installs if i.at_least(since or "0")]
        if wanted and not fitting:
            print(f"error: {missing or f'no ComfyUI {since} or newer here'}")
            return 2
        if wanted:
            draw(wanted, since, min(fitting, key=lambda i: version_numbers(i.version)))
    return 0


def draw(drawings: list[Drawing], since: str | None, install: Install) -> None:
    """Start this ComfyUI and write the workflows for what it says of its nodes."""
    with tempfile.TemporaryDirectory() as folder:
        server = ComfyServer(install, Path(folder))
        server.install_pack()
        server.start()
        try:
            nodes = server.get("/object_info")
        finally:
            server.stop()
    for drawing in drawings:
        sheet = Sheet(nodes, drawing.__name__)
        drawing(sheet)
        path = PACK / "workflows" / f"{sheet.name}.json"
        text = json.dumps(sheet.file(since), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    raise SystemExit(main())
