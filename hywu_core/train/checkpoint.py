"""The resumable state of a run: weights, optimiser, random generator and losses in one safetensors file.

Everything a run depends on is in there, so that an interrupted run continues to the same weights, bit for bit
on a CPU.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import HywuError
from ..storage import open_safetensors, write_safetensors
from .average import Average

FILE_NAME = "checkpoint.safetensors"
_KIND = "hywu-training-checkpoint-1"


@dataclass
class TrainState:
    """A run between two steps."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    losses: list[float]
    average: Average | None = None
    saved: int = 0  # the step of the last checkpoint written or read

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.losses)

    def save(self, folder: Path, run: dict[str, object]) -> Path:
        """Write the state beside a description of the run; the old file stays until the new one is whole.

        Raises HywuError for weights that are not finite, a checkpoint nobody could continue from.
        """
        for name, tensor in self.module.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise HywuError(f"{name} is not finite after step {self.step}; {self.last_good(folder)}.")
        tensors = {f"model.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": torch.as_tensor(value) for slot, value in slots.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.weights.items()}
        tensors["rng"] = self.generator.get_state()
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        path = folder / FILE_NAME
        write_safetensors(path, tensors, {"format": "pt", "hywu.kind": _KIND, "hywu.run": json.dumps(run)})
        self.saved = self.step
        return path

    def last_good(self, folder: Path) -> str:
        """What a run that has gone astray says about its last checkpoint."""
        if not self.saved:
            return "no checkpoint was written before"
        return f"the last good checkpoint, of step {self.saved}, is in {folder}"

    def restore(self, folder: Path) -> None:
        """Continue from `folder`; HywuError where its tensors do not fit this run."""
        tensors, _ = read_checkpoint(folder)
        model = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, slot = name.split(".")
                slots.setdefault(int(index), {})[slot] = tensor
        try:
            self.module.load_state_dict(model)
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise HywuError(f"{folder / FILE_NAME} belongs to another model: {reason}") from error
        if self.average is not None:
            for name, weight in self.average.weights.items():
                weight.copy_(tensors[f"average.{name}"])
        try:
            self.generator.set_state(tensors["rng"])
        except RuntimeError as error:
            raise HywuError(
                f"{folder} was trained on another device than '{self.generator.device.type}'; resume there."
            ) from error
        self.losses = tensors["losses"].tolist()
        self.saved = self.step


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors and the run description of a checkpoint folder; HywuError for a missing or damaged one."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise HywuError(f"There is nothing to resume in {folder}: it has no {FILE_NAME}.")
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("hywu.kind") != _KIND or "rng" not in tensors or "losses" not in tensors:
        raise HywuError(f"{path} is not a checkpoint of this trainer.")
    try:
        run = json.loads(metadata["hywu.run"])
        run["recipe"], run["config"]["steps"], run["settings"]
    except (KeyError, TypeError, ValueError) as error:
        raise HywuError(
            f"{path} has a damaged header: its description of the run is not complete."
        ) from error
    return tensors, run
