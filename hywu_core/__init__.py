"""HY-WU (Weight Unleashing): a transformer reads a condition and writes a LoRA for it.

The public names load on first use (PEP 562), so `import hywu_core` costs nothing and a command that only
reads an adapter never imports a diffusion model.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME_OF = {
    "Target": ".lora",
    "LoraSpec": ".lora",
    "Adapter": ".lora",
    "load_adapter": ".lora",
    "save_adapter": ".lora",
    "TokenLayout": ".tokens",
    "Condition": ".conditions",
    "GeneratorConfig": ".generator",
    "ParameterGenerator": ".generator",
    "load_generator": ".generator",
    "attach": ".apply",
    "HywuPipeline": ".pipeline",
    "HywuError": ".errors",
}

__all__ = [
    "Adapter",
    "Condition",
    "GeneratorConfig",
    "HywuError",
    "HywuPipeline",
    "LoraSpec",
    "ParameterGenerator",
    "Target",
    "TokenLayout",
    "attach",
    "load_adapter",
    "load_generator",
    "save_adapter",
]


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
