"""What the generator looks at: the condition and the encoders that make it. Stands alone."""

from .backbone_hidden import BackboneHiddenEncoder, hidden_condition
from .condition import Condition
from .edits import join_edits, lines_of
from .encoder import ConditionEncoder
from .registry import load_encoder
from .siglip2 import SigLIP2Encoder

__all__ = [
    "BackboneHiddenEncoder",
    "Condition",
    "ConditionEncoder",
    "SigLIP2Encoder",
    "hidden_condition",
    "join_edits",
    "lines_of",
    "load_encoder",
]
