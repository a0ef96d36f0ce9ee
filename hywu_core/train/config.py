"""What every training run has in common, whatever it trains."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from ..devices import resolve_device
from ..errors import HywuError, require_positive


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation settings; AdamW with a linear warm-up and a cosine decay to zero."""

    steps: int = 1000
    batch_size: int = 32  # rows of a step, over all processes and micro-batches
    accumulate: int = 1  # micro-batches of a step, one after the other in memory
    lr: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    seed: int = 0
    device: str = "auto"  # cuda, then mps, then cpu
    precision: str = "fp32"  # "tf32": shorter mantissas in products; "bf16": autocast, float32 master weights
    weights: str = (
        "fp32"  # how weights are kept: "fp32", or "bf16" with stochastic rounding, at half the memory
    )
    ema: float = 0.0  # decay of a moving average of the weights, which is then what is exported; 0: none
    checkpoint_every: int = 200
    sample_every: int = 0  # steps between sheets of held-out edits; 0: none before the end

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch_size", "accumulate", "checkpoint_every")
        for name in ("lr", "grad_clip"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise HywuError(f"{name} is {getattr(self, name)}; it must be a positive number.")
        for name in ("warmup", "weight_decay", "sample_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise HywuError(f"{name} is {getattr(self, name)}; it must be a number that is not negative.")
        if self.batch_size % self.accumulate:
            raise HywuError(
                f"accumulate is {self.accumulate}, which does not divide the batch size {self.batch_size}."
            )
        check_numbers(self.precision, self.weights, self.ema)
        if not 0 <= self.seed < 2**63:
            raise HywuError(f"seed is {self.seed}; it must be between 0 and 2^63 - 1.")
        resolve_device(self.device)

    @property
    def micro_batch(self) -> int:
        """Rows of a micro-batch, over all processes."""
        return self.batch_size // self.accumulate

    def learning_rate(self, step: int) -> float:
        """The rate at a step counted from 0: warm-up, then a half cosine that ends at zero."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def to_dict(self) -> dict[str, object]:
        """Plain values for the run folder."""
        return asdict(self)


def check_numbers(precision: str, weights: str, ema: float) -> None:
    """HywuError for what a run cannot compute with, keep its weights in, or average them by."""
    if precision not in ("fp32", "tf32", "bf16"):
        raise HywuError(f"precision is '{precision}'; choose fp32, tf32 or bf16.")
    if weights not in ("fp32", "bf16"):
        raise HywuError(f"weights is '{weights}'; choose fp32 or bf16.")
    if weights == "bf16" and precision != "bf16":
        raise HywuError(f"Weights kept in bf16 need the precision bf16, not {precision}.")
    if not 0 <= ema < 1:
        raise HywuError(f"ema is {ema}; it must be at least 0 (no average) and less than 1.")
