"""The generators that are measured, in the words of the release's config.json, and the work of each.

Shapes: B batch, S condition tokens, L layers of the backbone, P positions of a layer, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..generator import ParameterGenerator
from ..generator.release_sizes import release_like, release_mapping, released_config
from ..measure import Matmul


@dataclass(frozen=True)
class Size:
    """A generator to measure and the condition it gets: S tokens, a batch of one."""

    config: Mapping[str, Any]
    n_condition: int


SIZES = {
    # The release's shape, a thousandth of its work: every kind of module, also grouped experts.
    "small": Size(release_like(128, 32, 4, 8, release_mapping(128, 192, 96, 96, 8)), 64),
    # 64 tokens of each of 16 layers, and 0.34 TFLOP: a laptop's seconds.
    "mid": Size(
        release_like(
            512, 64, 8, 16, {name: {"lora_A_dim": 1024, "lora_B_dim": 1024} for name in ("q", "k", "v", "o")}
        ),
        128,
    ),
    # The published 8.11B generator: 1,379 tokens of each of 32 layers.
    "release": Size(released_config(), 1024),
}


def work(generator: ParameterGenerator, batch: int, n_condition: int, starts: int) -> int:
    """Floating-point operations of one forward pass, in matrix products and attention.

    starts: how often what depends on no condition is computed: once for each row of the batch, as the
        authors' code does, once for all, or not at all where it is at hand from an earlier call.
    """
    config, d = generator.config, generator.config.d_model
    total = 2 * batch * n_condition * d * config.condition_dim
    for band in generator.bands:
        n_layers, n_positions = band.n_layers, sum(band.n_tokens) * band.n_ranks
        positions = n_layers * n_positions
        parameters = positions * (2 * 8 * d * d + 4 * d * (n_layers + n_positions))
        to_condition = (
            2 * 2 * d * d * batch * (positions + n_condition) + 4 * d * batch * positions * n_condition
        )
        feed_forward = 4 * d * config.d_hidden * batch * positions
        total += starts * parameters + (config.n_layers - 1) * batch * parameters
        total += config.n_layers * (to_condition + feed_forward)
        total += 2 * batch * positions * d * generator.layout.segment
    return total


def typical_products(generator: ParameterGenerator, rows: int) -> list[Matmul]:
    """The matrix products that most of the work is made of, `rows` positions at a time."""
    d, hidden = generator.config.d_model, generator.config.d_hidden
    return [Matmul(rows, d, hidden), Matmul(rows, hidden, d), Matmul(rows, d, 3 * d), Matmul(rows, d, d)]
