"""What a step came to, read back some steps at a time: a GPU need not wait for each number."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepReport:
    """One optimiser step, as all processes together did it.

    step: counted from 1. rows: of the whole step. seconds: the step took; where several are read back
    together, their mean. scalars: what the task wants logged beside the loss, averaged as the loss is.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    rows: int
    seconds: float
    scalars: Mapping[str, float]


class Readings:
    """Steps whose numbers are still on the device."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._unread: list[tuple[float, int, Tensor]] = []
        self._since = time.perf_counter()

    def add(
        self, lr: float, rows: int, loss: Tensor, grad_norm: Tensor, scalars: Mapping[str, Tensor]
    ) -> None:
        """Note one step. The names of the scalars stay the same through a run."""
        self._names = tuple(scalars)
        numbers = [x.detach().float().reshape(()) for x in (loss, grad_norm, *scalars.values())]
        self._unread.append((lr, rows, torch.stack([x.to(loss.device) for x in numbers])))

    def restart(self) -> None:
        """Begin to measure the time of the next step now."""
        self._since = time.perf_counter()

    def numbers(self) -> Tensor:
        """What this process has not read yet, on the CPU: a row of float64 for every step."""
        values = [numbers for *_, numbers in self._unread]
        return torch.stack(values).cpu().double() if values else torch.empty(0, 2, dtype=torch.float64)

    def reports(self, first: int, numbers: Tensor) -> list[StepReport]:
        """The steps noted since the last call, from `first` on, with their `numbers`; they are then read."""
        now = time.perf_counter()
        seconds = (now - self._since) / max(1, len(self._unread))
        reports = [
            StepReport(first + i, loss, lr, norm, rows, seconds, dict(zip(self._names, scalars, strict=True)))
            for i, ((lr, rows, _), (loss, norm, *scalars)) in enumerate(
                zip(self._unread, numbers.tolist(), strict=True)
            )
        ]
        self._since = now
        self._unread.clear()
        return reports
