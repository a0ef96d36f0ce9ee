"""Our side path beside ComfyUI's stock LoRA loaders: one process, one random FLUX, the same adapters."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import HywuError, require_positive
from ..measure import Rounds, Spread
from ..report import megabytes, table

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    # The smallest that shows what happens to a real model: more than 1 GB of float32 weights.
    "1gb": {"hidden": 1024, "double_blocks": 2, "single_blocks": 13, "pixels": 512, "text_tokens": 64},
    # FLUX.1's own shape, 24 GB in bfloat16: for GPUs.
    "flux": {"hidden": 3072, "double_blocks": 19, "single_blocks": 38, "pixels": 1024, "text_tokens": 512},
    "tiny": {"hidden": 128, "double_blocks": 1, "single_blocks": 1, "pixels": 64, "text_tokens": 8},
}
_BYPASS = "LoraLoaderBypass"
# What the ratios are to be at most.
GOALS = {"change": 1 / 20, "step": 1 / 2}


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this bench."""
    parser.add_argument(
        "--comfyui", type=Path, metavar="FOLDER", help="default: COMFYUI_PATH, ~/comfy/ComfyUI"
    )
    parser.add_argument(
        "--python", type=Path, metavar="PROGRAM", help="ComfyUI's interpreter, if not its .venv's"
    )
    parser.add_argument(
        "--size", choices=SIZES, default="1gb", help="of the random FLUX (default: %(default)s)"
    )
    parser.add_argument("--rank", type=int, default=16, help="of the LoRAs (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=16, help="of each measurement (default: %(default)s)")
    parser.add_argument(
        "--changes", type=int, default=5, help="of the adapter, by way (default: %(default)s)"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time on one thread: for a CPU that is busy with other things",
    )
    parser.add_argument("--cpu", action="store_true", help="even if there is a GPU")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure inside a ComfyUI. Raises `HywuError` if there is none or it fails."""
    require_positive(arguments, "rank", "rounds", "changes")
    root = find_comfyui(arguments.comfyui)
    plan = SIZES[arguments.size] | {
        "rank": arguments.rank,
        "rounds": arguments.rounds,
        "changes": arguments.changes,
        "clock": "processor" if arguments.processor_time else "wall",
        "cpu": arguments.cpu or not torch.cuda.is_available(),
    }
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "plan.json", Path(folder) / "result.json"
        given.write_text(json.dumps(plan), encoding="utf-8")
        program = _given(arguments.python) if arguments.python else _interpreter(root)
        command = [str(program), "-B", "-m", f"{__package__}.comfy_apply", str(given), str(made)]
        # The folder comes first on the module path: `nodes` and `comfy` are ComfyUI's own there.
        done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
        if done.returncode or not made.is_file():
            raise HywuError(f"The bench failed inside of {root}; what it printed says why.")
        measured = json.loads(made.read_text(encoding="utf-8"))
    return {"bench": "apply", "plan": plan, **measured, "ratios": ratios(measured["seconds"])}


def find_comfyui(named: Path | None) -> Path:
    """A folder with a ComfyUI. Raises `HywuError` if there is none, or one too old to compare with."""
    first = os.environ.get("COMFYUI_PATH", "").split(os.pathsep)[0]
    root = (named or Path(first or Path.home() / "comfy" / "ComfyUI")).expanduser().resolve()
    if not (root / "main.py").is_file():
        raise HywuError(f"There is no ComfyUI in {root}; name its folder with --comfyui.")
    if not (
        root / "comfy" / "weight_adapter" / "bypass.py"
    ).is_file():  # nor does it open a FLUX of any width
        raise HywuError(f"The ComfyUI in {root} has no LoraLoaderBypass to compare with; take a newer one.")
    return root


def _given(program: Path) -> Path:
    """As it was given, from this folder: the bench runs in ComfyUI's. HywuError where there is none."""
    found = program if program.is_file() else shutil.which(program)
    if found is None:
        raise HywuError(f"There is no program {program}; name ComfyUI's interpreter with --python.")
    return Path(os.path.abspath(found))  # not resolved: a virtual environment's link is how it knows itself


def _interpreter(root: Path) -> Path:
    own = root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return own if own.exists() else Path(sys.executable)


def ratios(seconds: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, float]]:
    """What is to be compared, round by round, as spreads.

    change: ours over LoraLoader's.  step: what ours adds to a call over what LoraLoaderBypass adds.
    batch: four calls with one image over one call with four.
    """
    found = {
        "change": Rounds(seconds["change"]).ratio("ours", "LoraLoader"),
        "batch": Rounds(seconds["batch"]).ratio("4 runs", "batch of 4"),
    }
    if _BYPASS in seconds["step"]:  # older ComfyUIs have none
        found["step"] = _added(seconds["step"])
    return {name: spread.to_dict() for name, spread in found.items() if spread is not None}


def _added(step: Mapping[str, list[float]]) -> Spread | None:
    """The ratio of two small differences of large numbers: of medians over thirds of the rounds.

    One round's difference is smaller than its noise, so the spread is that of three independent parts. None
    where noise hides even what the stock way adds.
    """
    ratios = []
    for part in range(min(3, len(step["none"]))):
        none, stock, ours = (statistics.median(step[way][part::3]) for way in ("none", _BYPASS, "ours"))
        if stock > none:
            ratios.append((ours - none) / (stock - none))
    return Spread.of(ratios) if ratios else None


def report(result: Mapping[str, Any]) -> str:
    """A table: seconds, and the ratios beside their goals."""
    rows = [
        [f"{kind}: {way}", *(f"{1e3 * value:.1f}" for value in _three(Spread.of(times)))]
        for kind, ways in result["seconds"].items()
        for way, times in ways.items()
    ]
    lines = [
        f"ComfyUI {result['comfyui']} on {result['machine']['name']}, a random FLUX of "
        f"{megabytes(result['model']['bytes'])} in {result['model']['dtype']}, "
        f"{result['model']['positions']} positions, LoRAs of rank {result['plan']['rank']} on "
        f"{result['model']['linears']} linears; {result['plan']['clock']} time",
        "",
        table(["milliseconds", "min", "median", "max"], rows),
        "",
    ]
    names = {
        "change": "change of the adapter, ours / LoraLoader",
        "step": "added to a step, ours / LoraLoaderBypass",
        "batch": "4 runs / batch of 4 with 4 LoRAs",
    }
    shown = [
        [names[kind], *(f"{ratio[x]:.3f}" for x in ("minimum", "median", "maximum")), _goal(kind)]
        for kind, ratio in result["ratios"].items()
    ]
    return "\n".join([*lines, table(["ratio", "min", "median", "max", "goal"], shown)])


def _three(spread: Spread) -> tuple[float, float, float]:
    return spread.minimum, spread.median, spread.maximum


def _goal(kind: str) -> str:
    return f"<= {GOALS[kind]:.2f}" if kind in GOALS else ">= 1 (GPU: 1.5)"
