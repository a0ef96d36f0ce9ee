"""What the generator looks at: the condition and the encoders that make it. Stands alone."""

from .backbone_hidden import BackboneHiddenEncoder, hidden_condition
from .condition import Condition
from .encoder import ConditionEncoder
from .siglip2 import SigLIP2Encoder

__all__ = ["BackboneHiddenEncoder", "Condition", "ConditionEncoder", "SigLIP2Encoder", "hidden_condition"]
