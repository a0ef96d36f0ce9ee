"""Low-rank updates as data: what they adapt, their tensors, their files and their algebra."""

from .adapter import Adapter
from .files import load_adapter, save_adapter
from .peft import save_peft
from .spec import Band, LoraSpec, ModuleShape, Target

__all__ = [
    "Adapter",
    "Band",
    "LoraSpec",
    "ModuleShape",
    "Target",
    "load_adapter",
    "save_adapter",
    "save_peft",
]
