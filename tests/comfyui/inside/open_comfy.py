"""What every script in this folder starts with: ComfyUI, and our pack as ComfyUI would import it.

The scripts run under ComfyUI's interpreter as `python SCRIPT COMFYUI_ROOT WORK_FOLDER`, print one line of
JSON with what they measured, and leave the judgement to the tests. (Not in pytest's own process: ComfyUI
parses the command line when it is imported and owns names such as `nodes`.)
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def open_comfy() -> Path:
    """Make `comfy` importable and the pack as `pack`, as a server does; returns the work folder."""
    root, work = Path(sys.argv[1]), Path(sys.argv[2])
    sys.argv = [sys.argv[0], *(sys.argv[3:] or ["--cpu"])]
    sys.path.insert(0, str(root))
    os.chdir(root)
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    torch.set_grad_enabled(False)
    spec = importlib.util.spec_from_file_location("pack", REPOSITORY / "__init__.py")
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pack"])
    from pack.nodes import open_extension

    open_extension()
    return work
