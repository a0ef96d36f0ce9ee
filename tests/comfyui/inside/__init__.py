"""Scripts that run inside ComfyUI's own interpreter and print what they measured as JSON."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ..server import Install


def measure(install: Install, script: str, work: Path, device: str = "--cpu") -> dict[str, Any]:
    """Run a script of this folder on an install and parse the last line it printed.

    device: ComfyUI's option for where to run, or for how to share a GPU's memory out.
    """
    script_file = Path(__file__).with_name(script)
    command = [str(install.python), "-B", str(script_file), str(install.root), str(work), device]
    # The models are tiny: more threads only wait for each other, and long where the machine is busy.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, f"{script} on ComfyUI {install.version}:\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])
