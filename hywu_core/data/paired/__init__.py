"""Paired-edit data sets as people have them: the conventions of other trainers, read as they are."""

from .cache import EncodingCache, cache_key
from .collect import Sample
from .dataset import PairedDataset
from .detect import CONVENTIONS
from .encode import Encodings
from .options import Options
from .pictures import Picture

__all__ = [
    "CONVENTIONS",
    "EncodingCache",
    "Encodings",
    "Options",
    "PairedDataset",
    "Picture",
    "Sample",
    "cache_key",
]
