"""LoRAs optimised directly, many at a time: what a generated one is compared with, and what operations share.

Shapes: P adapters, N = k * P edits of a step.

Adam moves every number by itself, and an adapter's rows meet only their own edits, so that P adapters
optimised together are the same as each optimised alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tqdm import tqdm

from ..backbones.embedded import EmbeddedBackbone
from ..lora import Adapter, LoraSpec
from .draws import Edits, row_losses


def fresh_adapter(spec: LoraSpec, batch: int, seed: int, device: torch.device | str = "cpu") -> Adapter:
    """`batch` LoRAs of no effect: B is zero, and the random A, of variance 1 / d_in, is the same in all."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for target in spec.targets:
        A = torch.randn(1, spec.rank, target.d_in, generator=generator) / target.d_in**0.5
        weights[target.name] = (
            A.to(device).expand(batch, -1, -1),
            torch.zeros(batch, target.d_out, spec.rank, device=device),
        )
    return Adapter(weights, spec.scale)


def optimise(
    backbone: EmbeddedBackbone,
    adapter: Adapter,
    edits_of: Callable[[int], Edits],
    steps: int,
    lr: float,
    label: str,
) -> tuple[Adapter, list[float]]:
    """Adam from `adapter` on, its rate a half cosine that ends at zero; also each step's loss, a mean over P.

    edits_of(step) gives that step's edits: N = k * P rows, k consecutive ones for each adapter.
    """
    moved = adapter.map(lambda x: x.clone().requires_grad_())
    optimiser = torch.optim.Adam([x for pair in moved.values() for x in pair], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    losses = []
    for step in tqdm(range(steps), desc=label, unit="step"):
        each = row_losses(backbone, moved, edits_of(step)).view(moved.batch, -1).mean(1)
        optimiser.zero_grad()
        each.sum().backward()
        optimiser.step()
        schedule.step()
        losses.append(float(each.detach().mean()))
    return moved.detach(), losses
