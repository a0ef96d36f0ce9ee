"""Adapters as sequences of parameter tokens: the layout and the exact codec."""

from .codec import decode, encode
from .layout import TokenLayout, n_tokens

__all__ = ["TokenLayout", "decode", "encode", "n_tokens"]
