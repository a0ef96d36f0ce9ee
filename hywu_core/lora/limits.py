"""Bounds on a generated update (the controls of the paper's roadmap), and what they did in words.

The rank is bounded first, then the norms: what comes out keeps all bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import HywuError
from .adapter import Adapter
from .algebra import clip_norm, total_norm, truncate_rank

_LINES = 8  # of a report on a batch


@dataclass(frozen=True)
class Limits:
    """How large an update may be; None is no bound.

    max_norm: Frobenius norm of the whole update.  max_norm_per_target: of each target's.
    max_rank: of every target's update.

    Norms are of `scale * B @ A`, before any strength. Raises HywuError for a bound that is not positive.
    """

    max_norm: float | None = None
    max_norm_per_target: float | None = None
    max_rank: int | None = None

    def __post_init__(self) -> None:
        for name, bound in self.given.items():
            if not bound > 0:
                raise HywuError(f"{name} is {bound}; it must be positive.")

    @classmethod
    def of_widgets(cls, max_norm: float, max_norm_per_target: float, max_rank: int) -> Limits:
        """Bounds as a node's widgets give them, where 0 is no bound."""
        return cls(max_norm or None, max_norm_per_target or None, max_rank or None)

    @property
    def given(self) -> dict[str, float | int]:
        """The bounds there are, by name."""
        return {name: bound for name, bound in vars(self).items() if bound is not None}

    def apply(self, adapter: Adapter) -> tuple[Adapter, tuple[str, ...]]:
        """The adapter within its bounds, and a sentence for each thing that was changed.

        An adapter within them is returned itself. One that was changed says so in its provenance (`limits`).
        """
        bounded, report = self._bound_rank(adapter)
        bounded, clipped = self._bound_norms(bounded)
        report += clipped
        if not report:
            return adapter, ()
        told = {"limits": ", ".join(f"{name} {bound:g}" for name, bound in self.given.items())}
        return Adapter(bounded, bounded.scale, {**bounded.provenance, **told}, bounded.rows), tuple(report)

    def _bound_rank(self, adapter: Adapter) -> tuple[Adapter, list[str]]:
        if self.max_rank is None or adapter.rank <= self.max_rank:
            return adapter, []
        smaller = truncate_rank(adapter, self.max_rank)
        before, after = total_norm(adapter), total_norm(smaller)
        kept = float((after / before.clamp_min(1e-30)).min()) if before.any() else 1.0
        norm = "its norm" if adapter.batch == 1 else "each norm or more"
        return smaller, [
            f"max_rank {self.max_rank}: rank {adapter.rank} -> {self.max_rank}, "
            f"which keeps {kept:.1%} of {norm}"
        ]

    def _bound_norms(self, adapter: Adapter) -> tuple[Adapter, list[str]]:
        if self.max_norm is None and self.max_norm_per_target is None:
            return adapter, []
        clipped, report = clip_norm(adapter, self.max_norm_per_target, self.max_norm)
        if not report.n_clipped:
            return adapter, []
        bounds = {name: bound for name, bound in self.given.items() if name != "max_rank"}
        named = " and ".join(f"{name} {bound:g}" for name, bound in bounds.items())
        changed = []
        for row in range(adapter.batch):
            targets = sum(float(factor[row]) < 1 for factor in report.factors.values())
            if targets:
                which = "" if adapter.batch == 1 else f" of LoRA {row}"
                changed.append(
                    f"{named}: the norm{which} {float(report.total_before[row]):.4g} -> "
                    f"{float(report.total_after[row]):.4g}, {targets} of {len(adapter)} targets made smaller"
                )
        if len(changed) > _LINES:
            changed[_LINES - 1 :] = [
                f"{named}: {len(changed) - _LINES + 1} more of the {adapter.batch} LoRAs"
            ]
        return clipped, changed
