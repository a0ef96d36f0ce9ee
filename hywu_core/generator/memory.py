"""How much memory a generator takes, before it is there: its weights, and the worst moment of a call.

Shapes: B batch, S condition tokens, L layers of a band, P positions of a layer, D model width.

The numbers are bytes of tensors while no gradient is recorded. What libraries take for themselves (scratch of
a matrix product, the half gigabyte of a CUDA context) comes on top.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from ..lora import LoraSpec
from ..tokens import TokenLayout, n_tokens
from .config import GeneratorConfig
from .quantize import part_bytes, quantization_of
from .tiles import default_rows, row_bytes

if TYPE_CHECKING:
    from .model import ParameterGenerator


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes.

    weights: all the time.  kept: between calls, what depends on no condition.
    activation: x of the largest band, and for a batch beyond what is kept the one it grows from.
    condition: its tokens as the blocks read them, and one block's keys and values.
    working: temporaries of the positions in work at a time; the setting `activation_bytes` bounds them.
    output: the adapters.
    peak: the most that is there at once, weights and output included; less than the sum of all.
    """

    weights: int
    kept: int
    activation: int
    condition: int
    working: int
    output: int
    peak: int

    @property
    def extra(self) -> int:
        """The peak beyond the weights."""
        return self.peak - self.weights

    def to_dict(self) -> dict[str, int]:
        """Plain data for JSON."""
        return asdict(self)


def memory_plan(
    config: GeneratorConfig,
    spec: LoraSpec,
    layout: TokenLayout,
    *,
    n_condition: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    quantized: str | None = None,
    activation_bytes: int | None = None,
    keep_start_bytes: int = 0,
    device: torch.device | str = "cpu",
) -> MemoryPlan:
    """What a generator of this shape will take for a batch of conditions of S = `n_condition` tokens.

    dtype: what it computes in.  quantized: "int8" or "fp8" where the blocks' matrices are kept so.
    activation_bytes, keep_start_bytes: the generator's settings of these names.
    device: only its kind matters, for the default of `activation_bytes`.
    """
    d, size = config.d_model, dtype.itemsize
    each = row_bytes(config, size, layout.segment)
    rows = default_rows(torch.device(device)) if activation_bytes is None else activation_bytes // each.most
    bands = [(band.n_layers, sum(n_tokens(band, layout, spec.rank))) for band in spec.bands]
    positions = [layers * tokens * spec.rank // config.accumulation for layers, tokens in bands]
    kept = sum(positions) * d * size
    kept = kept if kept <= keep_start_bytes else 0
    grows_from = d * size if batch > 1 and not kept else 0  # a batch of one, until the first block's middle
    context = batch * n_condition * d * size
    keys = 2 * context + (0 if size >= 4 else 4 * batch * n_condition * d // 2)
    spare = _spare(config, size, quantized, torch.device(device))
    peak = written = working = 0
    for (layers, tokens), n in zip(bands, positions, strict=True):
        places = n // layers
        in_work = min(n * batch, max(rows, 1))
        # An attention takes whole columns or whole layers, whatever the setting.
        attending = min(n * batch, max(in_work, places, layers)) * each.attention
        block = max(attending, in_work * each.feed_forward) + spare
        output = batch * layers * tokens * spec.rank * layout.segment * size
        way_out = min(n * batch, max(in_work, places)) * each.way_out
        x = batch * n * d * size
        peak = max(peak, written + x + n * grows_from + keys + block, written + x + output + way_out)
        working = max(working, block, way_out)
        written += output
    weights = _weights(config, spec, layout, bands, size, quantized is not None)
    return MemoryPlan(
        weights=weights,
        kept=kept,
        activation=max(positions) * (batch * d * size + grows_from),
        condition=context + keys,
        working=working,
        output=written,
        peak=weights + kept + context + peak,
    )


def plan_of(
    generator: ParameterGenerator, n_condition: int, batch: int = 1, device: torch.device | str | None = None
) -> MemoryPlan:
    """`memory_plan` of a generator, with its settings; device: where it will run, if not where it is."""
    return memory_plan(
        generator.config,
        generator.spec,
        generator.layout,
        n_condition=n_condition,
        batch=batch,
        dtype=generator.dtype,
        quantized=quantization_of(generator),
        activation_bytes=generator.activation_bytes,
        keep_start_bytes=generator.keep_start_bytes,
        device=generator.device if device is None else device,
    )


def _spare(config: GeneratorConfig, size: int, quantized: str | None, device: torch.device) -> int:
    """A quantised matrix is written out, or its product counted in integers part by part (`quantize.py`)."""
    if quantized is None:
        return 0
    written_out = max(config.d_model * config.d_hidden, 3 * config.d_model**2) * size
    return max(written_out, 3 * part_bytes(device)) if quantized == "int8" else written_out


def _weights(
    config: GeneratorConfig,
    spec: LoraSpec,
    layout: TokenLayout,
    bands: list[tuple[int, int]],
    size: int,
    quantized: bool,
) -> int:
    d, hidden = config.d_model, config.d_hidden
    matrices = config.n_layers * (12 * d * d + 2 * d * hidden)
    outputs = config.n_layers * (12 * d + hidden + d)  # of these matrices: a bias, and a scale if quantised
    outside = d * (config.condition_dim + 1) + 2 * layout.segment * (config.d_row + 1)
    outside += 3 * d + config.n_layers * 4 * d  # norms
    outside += sum((tokens * spec.rank + layers) * config.d_row for layers, tokens in bands)
    if config.output_gain != "none":
        outside += sum(tokens for _, tokens in bands)
    kept_as = (matrices + 4 * outputs) if quantized else matrices * size
    return kept_as + (outputs + outside) * size
