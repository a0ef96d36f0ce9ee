"""The Neural Network Transformer that writes an adapter for a condition (paper 3.5), and its file."""

from .checkpoint import load_generator, save_generator
from .config import GeneratorConfig
from .model import ParameterGenerator
from .quantize import quantize_generator
from .release import save_release

__all__ = [
    "GeneratorConfig",
    "ParameterGenerator",
    "load_generator",
    "quantize_generator",
    "save_generator",
    "save_release",
]
