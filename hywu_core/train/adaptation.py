"""What learns, and how it bends the frozen backbone: HY-WU and the baselines it is compared with.

Shapes: B conditions, N LoRAs, [E] experts, r rank.

The paper's baselines (5.1, 5.3) differ in one thing only, how many weights an instance may call its own: one
LoRA for everything, one for each task, the whole backbone, or a LoRA generated for the instance. All of them
train in the same loop on the same samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..conditions import Condition
from ..errors import HywuError
from ..generator import GeneratorConfig, ParameterGenerator, save_generator
from ..lora import Adapter, LoraSpec, save_adapter
from ..tokens import TokenLayout

KINDS = ("hywu", "shared_lora", "single_lora", "sft")


class Adaptation(ABC):
    """One way to adapt a backbone.

    kind: its name in `KINDS`.
    module: exactly what is trained.
    """

    kind: str
    module: nn.Module

    @abstractmethod
    def adapter(self, condition: Condition, tasks: Tensor) -> Adapter | None:
        """B adapters for B conditions, or one for all, or none; differentiable in `module`.

        tasks: (B,), numbers of the tasks the conditions belong to.
        """

    @property
    def n_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)


class Generated(Adaptation):
    """HY-WU: a generator writes a LoRA for every condition (paper 3.2)."""

    kind = "hywu"

    def __init__(self, generator: ParameterGenerator) -> None:
        self.module = generator
        self.write = generator  # what is called: the generator itself, or compiled

    def adapter(self, condition: Condition, tasks: Tensor) -> Adapter:
        """B adapters."""
        return self.write(condition)


class DirectLoras(nn.Module):
    """N LoRAs as parameters. They start as LoRAs usually do, A random and B zero: nothing changes at first.

    A of every target (N, [E,] r, d_in), B (N, [E,] d_out, r), in the order of the spec's targets.
    """

    def __init__(self, spec: LoraSpec, n: int) -> None:
        super().__init__()
        self.spec = spec
        self.A, self.B = nn.ParameterList(), nn.ParameterList()
        for target in spec.targets:
            of_A, of_B = target.factor_shapes(spec.rank, n)
            self.A.append(torch.randn(of_A) * target.d_in**-0.5)
            self.B.append(torch.zeros(of_B))

    def forward(self, which: Tensor) -> Adapter:
        """The LoRAs of numbers `which` (B,) as an adapter of batch B."""
        names = [target.name for target in self.spec.targets]
        pairs = ((A[which], B[which]) for A, B in zip(self.A, self.B, strict=True))
        return Adapter(dict(zip(names, pairs, strict=True)), self.spec.scale)


class SharedLora(Adaptation):
    """One LoRA for all tasks."""

    kind = "shared_lora"

    def __init__(self, loras: DirectLoras) -> None:
        self.module = loras

    def adapter(self, condition: Condition, tasks: Tensor) -> Adapter:
        """One adapter, for every row."""
        return self.module(tasks.new_zeros(1))


class SingleLora(Adaptation):
    """A LoRA for each task; which task a sample belongs to must be known, also later."""

    kind = "single_lora"

    def __init__(self, loras: DirectLoras) -> None:
        self.module = loras

    def adapter(self, condition: Condition, tasks: Tensor) -> Adapter:
        """B adapters, equal for equal tasks."""
        return self.module(tasks)


class FineTuned(Adaptation):
    """Supervised fine-tuning: the backbone's own weights move."""

    kind = "sft"

    def __init__(self, transformer: nn.Module) -> None:
        self.module = transformer.requires_grad_(True)

    def adapter(self, condition: Condition, tasks: Tensor) -> None:
        """None: what has been learned is in the backbone."""
        return


def require_adaptation(kind: str) -> None:
    """HywuError for a kind there is not."""
    if kind not in KINDS:
        raise HywuError(f"There is no adaptation '{kind}'; choose from {', '.join(KINDS)}.")


def make_adaptation(
    kind: str,
    transformer: nn.Module,
    spec: LoraSpec,
    config: GeneratorConfig,
    n_tasks: int,
    layout: TokenLayout | None = None,
) -> Adaptation:
    """A fresh adaptation, from torch's random state, that leaves the backbone as it is; on its device.

    config, layout: of a generator, for "hywu".  n_tasks: how many LoRAs "single_lora" has.
    """
    require_adaptation(kind)
    if kind == "sft":
        return FineTuned(transformer)
    device = next(transformer.parameters()).device
    if kind == "hywu":
        return Generated(ParameterGenerator(config, spec, layout).to(device))
    if kind == "shared_lora":
        return SharedLora(DirectLoras(spec, 1).to(device))
    return SingleLora(DirectLoras(spec, n_tasks).to(device))


def export(
    adaptation: Adaptation,
    out: Path,
    name: str,
    tasks: Sequence[str],
    *,
    encoder: dict[str, Any],
    backbone: dict[str, Any],
    provenance: dict[str, Any],
    dtype: torch.dtype,
) -> list[Path]:
    """Write what was learned: a generator file, or LoRA files that every loader reads, one for each task.

    name: stem of the file or files.  tasks: names of the tasks of "single_lora", for the headers.

    A fine-tuned backbone is written by whoever knows its file format: HywuError here.
    """
    if isinstance(adaptation, Generated):
        path = out / f"{name}.safetensors"
        save_generator(
            path, adaptation.module, encoder=encoder, backbone=backbone, provenance=provenance, dtype=dtype
        )
        return [path]
    if isinstance(adaptation, FineTuned):
        raise HywuError("A fine-tuned backbone is no adapter; it is saved as a backbone.")
    loras = adaptation.module
    n = len(loras.A[0])
    with torch.no_grad():
        adapter = loras(torch.arange(n, device=loras.A[0].device)).cpu()
    if isinstance(adaptation, SharedLora):
        return [save_adapter(adapter, out / f"{name}.safetensors", dtype=dtype)]
    return [
        save_adapter(
            adapter,
            out / f"{name}_{index:03}.safetensors",
            index,
            dtype=dtype,
            metadata={"hywu.task": tasks[index]},
        )
        for index in range(n)
    ]
