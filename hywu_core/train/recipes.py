"""The recipes of `python -m hywu_core.train`: each names a task, its defaults, and what can be set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..devices import resolve_device
from ..errors import HywuError
from .config import TrainConfig
from .loop import Task
from .processes import Processes

if TYPE_CHECKING:
    from .hywu import HywuTrainingConfig

Settings = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How to make one of the shipped models again, or to learn from a data set of the user's own."""

    name: str
    summary: str
    defaults: TrainConfig
    build: Callable[[TrainConfig, Settings, Processes], Task]
    settings: Settings  # further names that `--set name=value` accepts, with their defaults


def _autoencoder(config: TrainConfig, settings: Settings, processes: Processes) -> Task:
    from .autoencoder import AutoencoderTask

    torch.manual_seed(config.seed)
    return AutoencoderTask(resolve_device(config.device), settings["compile"])


def _backbone(config: TrainConfig, settings: Settings, processes: Processes) -> Task:
    from ..backbones.embedded import EmbeddedBackboneConfig
    from .backbone import BackboneTask
    from .world import WorldConfig

    return BackboneTask(
        EmbeddedBackboneConfig(n_double=settings["n_double"], n_single=settings["n_single"]),
        WorldConfig(crops=settings["crops"], variants=settings["variants"]),
        resolve_device(config.device),
        config.seed,
        settings["compile"],
    )


# What the short demonstration learns: four operations the base has never seen, each against one it knows
# (brighten, warm, vignette, darken_top).
DEMO_OPERATIONS = ("darken", "cool", "white_vignette", "darken_bottom")


# What every recipe that adapts a frozen backbone can be told.
ADAPTING: Settings = {"adaptation": "hywu", "prompt_dropout": 0.0, "strength_penalty": 0.0}


def _adapting(settings: Settings) -> Settings:
    return {name: settings[name] for name in ADAPTING}


def _generator(config: TrainConfig, settings: Settings, processes: Processes) -> Task:
    from .hywu import HywuTask, HywuTrainingConfig
    from .world import WorldConfig, sizes_about

    return HywuTask(
        "embedded_generator",
        HywuTrainingConfig(
            base_share=settings["base_share"],
            focus=tuple(name.strip() for name in settings["focus"].split(",") if name.strip()),
            focus_share=settings["focus_share"],
            rank=settings["rank"],
            n_layers=settings["n_layers"],
            mlp_ratio=settings["mlp_ratio"],
            noise_levels=settings["noise_levels"],
            shift=settings["shift"],
            keep=settings["keep"],
            **_adapting(settings),
        ),
        WorldConfig(
            sizes_about(settings["pixels"], settings["shapes"]),
            settings["crops"],
            settings["variants"],
            half=config.precision == "bf16",
        ),
        resolve_device(config.device),
        config.seed,
        settings["init"] or None,
        settings["compile"],
    )


def _text(config: TrainConfig, settings: Settings, processes: Processes) -> Task:
    from .embedded_text import TextAdaptation, TextTask

    return TextTask(TextAdaptation(**settings), config.seed, resolve_device(config.device))


def demo_training(settings: Settings) -> HywuTrainingConfig:
    """What `embedded_demo` trains, and how."""
    from .hywu import HywuTrainingConfig

    size = settings["size"]
    return HywuTrainingConfig(
        operations=DEMO_OPERATIONS,
        rank=4,
        d_model=128,
        n_layers=2,
        noise_levels=settings["noise_levels"],
        area=size * size,
        photos=settings["photos"],
        **_adapting(settings),
    )


def _demo(config: TrainConfig, settings: Settings, processes: Processes) -> Task:
    from .hywu import HywuTask
    from .world import WorldConfig

    size = settings["size"]
    return HywuTask(
        "embedded_demo",
        demo_training(settings),
        WorldConfig(sizes=((size, size),), crops=settings["crops"], variants=settings["variants"]),
        resolve_device(config.device),
        config.seed,
    )


_SMALL: Settings = {"rank": 8, "alpha": 8.0, "d_model": 256, "n_layers": 3, "n_heads": 4, "accumulation": 1}


def _paired() -> tuple[Recipe, ...]:
    """A recipe for each kind of backbone, to be trained through on a data set of the user's own."""
    from ..backbones.registry import kinds
    from .paired_recipe import SETTINGS, build

    large = TrainConfig(steps=2000, batch_size=4, lr=1e-4, warmup=100, precision="bf16", sample_every=250)
    small = TrainConfig(steps=400, batch_size=8, lr=1e-3, warmup=20, sample_every=100)  # fits a CPU
    embedded = SETTINGS | _SMALL | {"backbone_dtype": "fp32", "sample_steps": 8}
    return tuple(
        Recipe(
            kind,
            f"your own data set on {'the embedded backbone, on a CPU' if kind == 'embedded' else kind}",
            small if kind == "embedded" else large,
            partial(build, kind),
            embedded if kind == "embedded" else SETTINGS,
        )
        for kind in kinds()
    )


def _recipes() -> tuple[Recipe, ...]:
    from .embedded_text import DEFAULTS, TextAdaptation

    return (
        Recipe(
            "embedded_demo",
            "a small generator for four new operations on the frozen embedded backbone, in minutes on a CPU",
            TrainConfig(steps=200, batch_size=8, lr=2e-3, warmup=20, checkpoint_every=50),
            _demo,
            {"size": 128, "crops": 24, "variants": 1, "photos": 2, "noise_levels": 2} | ADAPTING,
        ),
        Recipe(
            "embedded_autoencoder",
            "the embedded autoencoder",
            TrainConfig(steps=4200, batch_size=96, lr=1e-3, warmup=100, weight_decay=0.0, precision="bf16"),
            _autoencoder,
            {"compile": True},
        ),
        Recipe(
            "embedded_backbone",
            "the embedded FLUX Kontext backbone, pretrained on the base operations",
            TrainConfig(steps=7807, batch_size=128, lr=1.5e-3, warmup=300, precision="bf16"),
            _backbone,
            {"n_double": 1, "n_single": 4, "crops": 256, "variants": 2, "compile": False},
        ),
        Recipe(
            "embedded_generator",
            "the embedded HY-WU generator for all operations, on the frozen backbone",
            TrainConfig(steps=1900, batch_size=128, lr=2e-3, warmup=150, precision="bf16"),
            _generator,
            {"base_share": 0.3, "rank": 8, "n_layers": 3, "mlp_ratio": 1.0}
            | {"noise_levels": 4, "shift": 1.0, "crops": 96, "variants": 1, "pixels": 256, "shapes": 0}
            | {"focus": "", "focus_share": 3.0}  # operations, with commas between, that come more often
            | {"init": "", "keep": 0.0, "compile": False}  # init: a generator file to start from
            | ADAPTING,
        ),
        Recipe(
            "embedded_text",
            "the embedded text encoder, from a multilingual sentence encoder",
            DEFAULTS,
            _text,
            asdict(TextAdaptation()),
        ),
        *_paired(),
    )  # fmt: skip


def recipe(name: str) -> Recipe:
    """The recipe of a name; HywuError with the names there are."""
    known = {each.name: each for each in _recipes()}
    if name not in known:
        raise HywuError(f"There is no recipe '{name}'; choose from {', '.join(known)}.")
    return known[name]


def names() -> tuple[str, ...]:
    """All recipe names, the default first."""
    return tuple(each.name for each in _recipes())


def configure(chosen: Recipe, overrides: Settings) -> tuple[TrainConfig, Settings]:
    """Split overrides between the common settings and the recipe's own; strings become the default's type.

    HywuError for a setting that the recipe does not have, and for a value of no sense.
    """
    common = {field.name for field in fields(TrainConfig)}
    config, settings = {}, dict(chosen.settings)
    for name, value in overrides.items():
        if name in common:
            config[name] = _typed(name, value, getattr(chosen.defaults, name))
        elif name in settings:
            settings[name] = _typed(name, value, settings[name])
        else:
            known = ", ".join(sorted(common | settings.keys()))
            hint = " Micro-batches of a step are accumulate=N." if name == "accumulation" else ""
            raise HywuError(f"The recipe '{chosen.name}' has no setting '{name}'; it has {known}.{hint}")
    for name, least in _LEAST.items():
        if settings.get(name, least) < least:
            raise HywuError(f"{name} is {settings[name]}; it must be at least {least}.")
    return replace(chosen.defaults, **config), settings


# What recipes share of their own settings, and reckon with before a task is made.
_LEAST = {"noise_levels": 1, "resolution": 0}


def _typed(name: str, value: Any, default: Any) -> Any:
    if not isinstance(value, str) or isinstance(default, str):
        return value
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        return type(default)(value)
    except (KeyError, ValueError) as error:
        raise HywuError(f"{name} is '{value}'; it must be a {type(default).__name__}.") from error
