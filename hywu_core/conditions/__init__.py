"""What the generator looks at: the condition and the encoders that make it. Stands alone."""

from .condition import Condition

__all__ = ["Condition"]
