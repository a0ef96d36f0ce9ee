"""The size and the shape of a parameter generator."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ..errors import HywuError

OutputGain = Literal["none", "fixed", "learned"]

_MOST = sys.float_info.max  # a whole number in a file may be beyond it
MOST_LAYERS = 2**10  # far beyond every real one: a damaged number in a file must not fill the memory


@dataclass(frozen=True)
class GeneratorConfig:
    """Hyper-parameters of the NNT (paper 3.5); the default is a small one that trains on a CPU.

    condition_dim: channels of a condition token, given by the encoder.
    d_model: width of a position; `accumulation` consecutive rank rows of d_row = d_model / accumulation share
        one.
    n_layers, n_heads: blocks, and attention heads in each; the head width must be a multiple of 4, because
        RoPE turns pairs of channels and half of them belong to either of two indices.
    mlp_ratio: inner width of the feed-forward in units of d_model.
    accumulation: rank rows per position; must divide the rank of the LoraSpec.
    rope_theta, norm_eps: base of the rotary frequencies, epsilon of every RMSNorm.
    output_gain: "fixed" multiplies what is generated for A and for B by constants that depend on the target's
        shape alone (see `initialise.py`), "learned" trains them, "none" has none, as the released generator.
    """

    condition_dim: int
    d_model: int = 256
    n_layers: int = 3
    n_heads: int = 4
    mlp_ratio: float = 4.0
    accumulation: int = 2
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    output_gain: OutputGain = "fixed"

    def __post_init__(self) -> None:
        for name in ("condition_dim", "d_model", "n_layers", "n_heads", "accumulation"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise HywuError(f"GeneratorConfig.{name} is {value!r}; it must be an integer of at least 1.")
        if self.n_layers > MOST_LAYERS:
            raise HywuError(f"GeneratorConfig.n_layers is {self.n_layers}; it must be at most {MOST_LAYERS}.")
        for name in ("mlp_ratio", "rope_theta", "norm_eps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _MOST:
                raise HywuError(f"GeneratorConfig.{name} is {value!r}; it must be a positive number.")
        for name in ("n_heads", "accumulation"):
            if self.d_model % getattr(self, name):
                raise HywuError(
                    f"GeneratorConfig.d_model {self.d_model} is no multiple of {name} {getattr(self, name)}."
                )
        if self.head_dim % 4:
            raise HywuError(
                f"GeneratorConfig: d_model {self.d_model} over n_heads {self.n_heads} gives heads of "
                f"{self.head_dim} channels; RoPE over two indices needs a multiple of 4."
            )
        if self.d_hidden < 1 or self.d_hidden != self.mlp_ratio * self.d_model:
            raise HywuError(
                f"GeneratorConfig: mlp_ratio {self.mlp_ratio} times d_model {self.d_model} is no whole width."
            )
        if self.output_gain not in get_args(OutputGain):
            raise HywuError(
                f"GeneratorConfig.output_gain is {self.output_gain!r}; "
                f"choose one of {', '.join(get_args(OutputGain))}."
            )

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.d_model // self.n_heads

    @property
    def d_row(self) -> int:
        """Channels of one rank row inside a position."""
        return self.d_model // self.accumulation

    @property
    def d_hidden(self) -> int:
        """Inner width of the feed-forward."""
        return int(self.mlp_ratio * self.d_model)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file header."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeneratorConfig:
        """The inverse of `to_dict`; HywuError on unknown or missing fields and on values of no sense."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise HywuError(
                f"GeneratorConfig does not know {', '.join(unknown)}; the file is from a newer version."
            )
        if "condition_dim" not in values:
            raise HywuError("GeneratorConfig lacks condition_dim, the channels of a condition token.")
        return cls(**values)
