"""What a person watches of a run: a line of numbers for every step, TensorBoard, and sheets of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..devices import use_tf32
from ..images import save_image, sheet
from ..measure import Matmul, matmul_ceiling
from ..storage import atomic_path
from .report import StepReport
from .shown import Shown

METRICS, SAMPLES, TENSORBOARD = "metrics.jsonl", "samples", "tensorboard"


class RunWatch:
    """Writes into a run folder what happens in it, on the first process; a context manager.

    metrics.jsonl: one JSON object for every step. samples/: a PNG whenever held-out edits are shown.
    tensorboard/: both, for TensorBoard, where that is installed.
    """

    def __init__(self, out: Path, first_step: int, peak_flops: float = 0.0) -> None:
        """`first_step`: the steps already done; what was noted of later ones is forgotten, they come again.

        peak_flops: what this process's device could do in a second; where that is known, the share of it that
        goes into a step's products, forward, backward and recomputed, is noted as "mfu".
        """
        self.out, self._peak = out, peak_flops
        self._flops_per_row = 0.0  # of this process, for each row of the step
        _keep_steps(out / METRICS, first_step)
        self._metrics = (out / METRICS).open("a", encoding="utf-8")
        self._board = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(out / TENSORBOARD), purge_step=first_step + 1)

    def on_step(self, report: StepReport) -> None:
        """Note a step."""
        per_second = report.rows / report.seconds if report.seconds else 0.0
        numbers = {
            "loss": report.loss,
            "lr": report.lr,
            "grad_norm": report.grad_norm,
            "samples_per_second": per_second,
            **report.scalars,
        }
        if "tokens_per_row" in numbers:
            numbers["tokens_per_second"] = per_second * numbers.pop("tokens_per_row")
        if self._flops_per_row:
            numbers["mfu"] = per_second * self._flops_per_row / self._peak
        if (memory := memory_bytes()) is not None:
            numbers["memory_gb"] = memory / 1e9
        self._note(report.step, numbers)

    @contextmanager
    def work(self, rows: int) -> Iterator[None]:
        """Count what a micro-batch of `rows`, over all processes, takes of this one; once is enough.

        Products inside compiled code are not seen: no share is noted then.
        """
        if self._flops_per_row or not self._peak:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self._flops_per_row = counter.get_total_flops() / rows

    def on_show(self, step: int, shown: Shown) -> None:
        """Note what was shown after a step, and keep the pictures."""
        self._note(step, dict(shown.scalars))
        if not shown.rows:
            return
        (self.out / SAMPLES).mkdir(exist_ok=True)
        page = sheet(shown.rows, shown.columns)
        save_image(page, self.out / SAMPLES / f"step_{step:06}.png")
        if self._board is not None:
            self._board.add_image(SAMPLES, np.asarray(page), step, dataformats="HWC")

    def _note(self, step: int, numbers: dict[str, float]) -> None:
        self._metrics.write(json.dumps({"step": step} | numbers) + "\n")
        self._metrics.flush()
        if self._board is not None:
            for name, number in numbers.items():
                self._board.add_scalar(name, number, step)

    def __enter__(self) -> RunWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()
        if self._board is not None:
            self._board.close()


def device_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of a large plain product in a run's precision, measured: what "mfu" is a share of.

    On a GPU only; 0 elsewhere, where other programs move it more than training does.
    """
    if device.type != "cuda":
        return 0.0
    use_tf32(precision == "tf32")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return max(matmul_ceiling([Matmul(8192, 8192, 8192)], device, dtype, rounds=3).values())


def memory_bytes() -> int | None:
    """Memory of this process: the most it has had of a GPU, else what it has of the machine, if known."""
    if torch.cuda.is_available() and (used := torch.cuda.max_memory_allocated()):
        return used
    if find_spec("psutil") is None:
        return None
    import psutil

    return psutil.Process().memory_info().rss


def _keep_steps(path: Path, last: int) -> None:
    """Forget lines of steps after `last`, and a line that was cut off."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
