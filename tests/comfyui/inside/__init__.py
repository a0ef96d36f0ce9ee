"""Scripts that run inside ComfyUI's own interpreter and print what they measured as JSON."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from ..server import Install


def measure(install: Install, script: str, work: Path) -> dict[str, Any]:
    """Run a script of this folder on an install and parse the last line it printed."""
    command = [str(install.python), "-B", str(Path(__file__).with_name(script)), str(install.root), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{script} on ComfyUI {install.version}:\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])
