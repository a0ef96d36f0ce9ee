"""The one place where weights get their first values.

Every step is chosen so that activations keep unit variance, so that A starts as a usual LoRA's A, and so that
one optimiser step moves the update about as much as it would move a directly trained LoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..lora.spec import Band
from ..tokens import TokenLayout

if TYPE_CHECKING:
    from .model import ParameterGenerator


@torch.no_grad()
def initialise(generator: ParameterGenerator) -> None:
    """Fill all parameters in place, from torch's global random state."""
    config = generator.config
    for module in generator.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)

    # Branches add up on the residual stream; together they get the variance of the prior they start from. The
    # way to the condition is left at full size: it is all that tells two adapters of a batch apart.
    branch = (3 * config.n_layers) ** -0.5
    for block in generator.blocks:
        for linear in (block.layer_attention.out, block.token_attention.out, block.feed_forward.fc2):
            linear.weight.mul_(branch)

    for band, parameters in zip(generator.spec.bands, generator.bands, strict=True):
        # The prior is normalised before use; the scale only says how far one optimiser step moves it.
        nn.init.normal_(parameters.token_rank, std=config.d_row**-0.5)
        nn.init.normal_(parameters.layer, std=config.d_row**-0.5)
        if parameters.gain is not None:
            parameters.gain.copy_(token_gain(band, generator.layout, generator.spec.rank, config.d_row))

    # With its zero bias: training starts exactly at the frozen backbone.
    nn.init.zeros_(generator.proj_out_B.weight)


def token_gain(band: Band, layout: TokenLayout, rank: int, d_row: int) -> Tensor:
    """Gains (T,) of a band's tokens.

    A's rows leave their projection with unit variance; 1 / sqrt(d_in) gives x A^T unit variance too, whatever
    the width of the target. B starts at zero, but Adam moves each weight of its projection by the learning
    rate, and the d_row of them that add up to one entry of B move together: 1 / sqrt(d_row) takes most of
    that back.
    """
    counts = [layout.module_tokens(module, rank) for module in band.modules]
    gains = [
        module.d_in**-0.5 for module, (n_A, _) in zip(band.modules, counts, strict=True) for _ in range(n_A)
    ]
    gains += [d_row**-0.5] * sum(n_B for _, n_B in counts)
    return torch.tensor(gains)
