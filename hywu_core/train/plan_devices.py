"""The accelerators a plan can be made for, by the figures their makers publish.

Dense bfloat16 with float32 sums; bandwidths in one direction. None of it was measured here. How much of the
peak a training step reaches is `EFFICIENCY` until `--plan --measure` has been run on such a machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import HywuError

EFFICIENCY = 0.4  # assumed: what large transformers are commonly trained at; see `--efficiency`
PER_NODE = 8
RESERVED = 1_500_000_000  # bytes, assumed: a CUDA context, NCCL's buffers and the libraries' workspaces


@dataclass(frozen=True)
class Accelerator:
    """Figures of one device, in FLOP/s, bytes and bytes/s.

    link: between devices of a node.  network: to other nodes, for each device.
    """

    name: str
    flops: Mapping[str, float]
    memory: float
    memory_bandwidth: float
    link: float
    network: float

    def with_memory(self, n_bytes: float) -> Accelerator:
        """The same with that much memory."""
        return replace(self, memory=n_bytes)


def _flops(bf16: float, tf32: float, fp32: float) -> dict[str, float]:
    return {"bf16": bf16 * 1e12, "tf32": tf32 * 1e12, "fp32": fp32 * 1e12}


_DEVICES = {
    "a100": Accelerator("A100 SXM 80 GB", _flops(312, 156, 19.5), 80e9, 2.04e12, 300e9, 25e9),
    "h100": Accelerator("H100 SXM", _flops(989, 494, 67), 80e9, 3.35e12, 450e9, 50e9),
    "h200": Accelerator("H200 SXM", _flops(989, 494, 67), 141e9, 4.8e12, 450e9, 50e9),
    "b200": Accelerator("B200 SXM", _flops(2250, 1100, 75), 180e9, 7.7e12, 900e9, 50e9),
    "l40s": Accelerator("L40S", _flops(362, 183, 91.6), 48e9, 0.864e12, 32e9, 25e9),
    "rtx4090": Accelerator("RTX 4090", _flops(165, 82.6, 82.6), 24e9, 1.01e12, 32e9, 3e9),
    "rtx5090": Accelerator("RTX 5090", _flops(209.5, 104.8, 104.8), 32e9, 1.79e12, 64e9, 3e9),
}  # fmt: skip


def accelerator(name: str) -> Accelerator:
    """The figures of a device; HywuError with the names there are."""
    if name not in _DEVICES:
        raise HywuError(f"There are no figures for the GPU '{name}'; choose from {', '.join(_DEVICES)}.")
    return _DEVICES[name]


def accelerator_names() -> tuple[str, ...]:
    """All names."""
    return tuple(_DEVICES)
