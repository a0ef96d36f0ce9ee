"""From settings to a task on a user's data set: look, encode, let the encoders go, load the backbone.

In this order, because whatever can be wrong is cheapest to find early, and because encoders and backbone
need not be in memory together.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..backbones.base import EditBackbone
from ..backbones.registry import backbone_class
from ..conditions import BackboneHiddenEncoder, ConditionEncoder, SigLIP2Encoder
from ..conditions.embedded import EmbeddedConditionEncoder
from ..data.paired import EncodingCache, Encodings, Options, PairedDataset
from ..data.paired.buckets import Buckets
from ..data.paired.file_hashes import FileHashes
from ..devices import resolve_device
from ..errors import HywuError
from ..generator import GeneratorConfig, ParameterGenerator
from ..lora import LoraSpec
from .adaptation import make_adaptation, require_adaptation
from .config import TrainConfig
from .encoded_edits import EncodedEdits, Encoders, Names
from .paired import PairedConfig, PairedTask
from .processes import Processes, first_process
from .share import Share

log = logging.getLogger("hywu")

BACKBONE_TEXT = "backbone"  # as --encoder: the generator reads the backbone's own text
SIGLIP2 = "google/siglip2-so400m-patch16-naflex"  # paper 3.3

# Everything `--set` accepts, with defaults; what has a flag of its own comes first.
SETTINGS: dict[str, Any] = {
    "data": "",
    "data_options": {},
    "backbone": "",
    "encoder": "",
    "quantize": "",
    "allow_download": False,
    "resolution": 0,  # side of the square whose area the targets have; 0: the backbone's own
    "cache": "runs/cache",
    "adaptation": "hywu",
    "rank": 16,
    "alpha": 16.0,
    "targets": "",  # patterns of module names, separated by commas; none: the backbone's own choice
    "d_model": 1024,
    "n_layers": 8,
    "n_heads": 16,
    "mlp_ratio": 4.0,
    "accumulation": 4,
    "noise_levels": 1,
    "prompt_dropout": 0.05,
    "strength_penalty": 0.0,
    "held_out": 4,
    "sample_steps": 20,
    "backbone_dtype": "bf16",
    "compile": False,
}
GENERATOR_SETTINGS = ("d_model", "n_layers", "n_heads", "mlp_ratio", "accumulation")
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def build(kind: str, config: TrainConfig, settings: Mapping[str, Any], processes: Processes) -> PairedTask:
    """The task for a backbone of this kind. HywuError, in the order of what it costs to find out."""
    backbone = backbone_class(kind)
    embedded = kind == EmbeddedConditionEncoder.kind
    paired, generator = check(settings, config.seed)
    if not settings["data"]:
        raise HywuError("There is nothing to learn from; name a data set with --data PATH.")
    if not settings["backbone"] and not embedded:
        raise HywuError("Which backbone is trained through? Name its folder or hub id with --backbone MODEL.")
    device, dtype = resolve_device(config.device), _DTYPES[settings["backbone_dtype"]]
    edits = look(backbone, settings)
    check_adaptable(edits, settings)
    named = {"model": settings["backbone"]} if settings["backbone"] else {}
    named["allow_download"] = settings["allow_download"]
    frozen = named | {
        "device": device,
        "dtype": transformer_dtype(config, settings),
        "quantize": settings["quantize"] or None,
    }
    spec = adapted(settings, backbone, backbone.check_transformer(**frozen))
    with torch.device("meta"):  # what could not be made is found before the long encoding
        ParameterGenerator(GeneratorConfig(condition_dim=1, **generator), spec)

    encoders = backbone.load_encoders(device=device, dtype=dtype, **named)
    condition = load_condition_encoder(settings, device, embedded)
    names, info = encode(edits, Encoders(encoders, condition), paired.prompt_dropout > 0, processes)
    encoders.forget_text()
    del condition
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

    loaded = backbone.load_transformer(**frozen)
    torch.manual_seed(config.seed)
    generator = GeneratorConfig(condition_dim=info["dim"], **generator)
    tasks = len(edits.tasks)
    adaptation = make_adaptation(settings["adaptation"], loaded.transformer, spec, generator, tasks)
    log.info(
        "%s learns %s numbers; %s", settings["adaptation"], f"{adaptation.n_parameters:,}", spec.describe()
    )
    decode, half = encoders.decode_latent, config.precision == "bf16"
    return PairedTask(kind, loaded, edits, names, adaptation, paired, info, decode, settings["compile"], half)


def transformer_dtype(config: TrainConfig, settings: Mapping[str, Any]) -> torch.dtype:
    """How the backbone's weights are kept. What learns is kept as the run says: most steps are too small for
    a weight in bfloat16 to move. The precision of products is another matter (autocast).
    """
    learns = settings["adaptation"] == "sft" and config.weights == "fp32"
    return torch.float32 if learns else _DTYPES[settings["backbone_dtype"]]


def check(settings: Mapping[str, Any], seed: int) -> tuple[PairedConfig, dict[str, Any]]:
    """The configs in the settings; HywuError for what could not work whatever the data and the backbone."""
    require_adaptation(settings["adaptation"])
    if settings["backbone_dtype"] not in _DTYPES:
        raise HywuError(f"backbone_dtype is '{settings['backbone_dtype']}'; choose {' or '.join(_DTYPES)}.")
    if settings["quantize"] and settings["adaptation"] == "sft":
        raise HywuError(
            f"A backbone in {settings['quantize']} cannot be fine-tuned itself; leave out --quantize."
        )
    generator = {name: settings[name] for name in GENERATOR_SETTINGS}
    GeneratorConfig(condition_dim=1, **generator)
    fields = ("noise_levels", "prompt_dropout", "strength_penalty", "held_out", "sample_steps")
    return PairedConfig(**{name: settings[name] for name in fields}, seed=seed), generator


def target_patterns(settings: Mapping[str, Any], backbone: type[EditBackbone]) -> Sequence[str]:
    """Which modules of the backbone are adapted: those of the settings, else its own choice."""
    return [p.strip() for p in settings["targets"].split(",") if p.strip()] or backbone.default_targets


def adapted(settings: Mapping[str, Any], backbone: type[EditBackbone], transformer: nn.Module) -> LoraSpec:
    """What of a transformer is adapted, and how; HywuError where that is nothing."""
    return LoraSpec.from_module(
        transformer,
        include=target_patterns(settings, backbone),
        rank=settings["rank"],
        alpha=settings["alpha"],
    )


def look(backbone: type[EditBackbone], settings: Mapping[str, Any]) -> EncodedEdits:
    """The data set with its pictures' sizes, each edit's number of controls fit for the backbone.

    The first process logs one line where no edit has any words.
    """
    options = Options.from_dict(settings["data_options"])
    data = PairedDataset.load(settings["data"], options)
    if first_process() and data.wordless:
        log.warning(
            "None of the %d samples has a caption in %s; all prompts are empty.", len(data), data.path
        )
    for index in range(len(data)):
        n = data.samples.count_controls(index)
        backbone.check_controls(n, f"{data[index].target} has {n} control pictures")
    sizes, controls = backbone.target_sizes, backbone.control_sizes
    area = settings["resolution"] ** 2 or sizes.area
    return EncodedEdits(
        data,
        Encodings(EncodingCache(settings["cache"]), FileHashes(settings["cache"])),
        Buckets(area, sizes.divisor),
        None if controls is None else Buckets(controls.area * area // sizes.area, controls.divisor),
    )


def check_adaptable(edits: EncodedEdits, settings: Mapping[str, Any]) -> None:
    """HywuError where what shall learn cannot learn from such edits."""
    if reads_with_encoder(settings):
        bare = [i for i in range(len(edits)) if not edits.data.samples.count_controls(i)]
        if bare:
            raise HywuError(
                f"{len(bare)} of {len(edits)} samples have no control picture, such as "
                f"{edits.data[bare[0]].target}, and the condition encoder looks at one; add them, or let the "
                f"generator read the backbone's own text with --encoder {BACKBONE_TEXT}."
            )
    tasks = len(edits.tasks)
    if settings["adaptation"] == "single_lora" and 2 * tasks > len(edits):
        raise HywuError(
            f"The {len(edits)} samples have {tasks} different captions, and single_lora learns a LoRA for "
            "each; give all samples of a task the same one, or take shared_lora or hywu."
        )


def reads_with_encoder(settings: Mapping[str, Any]) -> bool:
    """Whether there is a generator, and it reads with an encoder of its own. No baseline reads conditions."""
    return settings["adaptation"] == "hywu" and settings["encoder"] != BACKBONE_TEXT


def load_condition_encoder(
    settings: Mapping[str, Any], device: torch.device, embedded: bool
) -> ConditionEncoder | None:
    """The encoder the generator reads with; None where that is the backbone's own text, or nobody reads."""
    name = settings["encoder"]
    if not reads_with_encoder(settings):
        return None
    if embedded and name in ("", EmbeddedConditionEncoder.kind):
        return EmbeddedConditionEncoder.load(silent=True)
    return SigLIP2Encoder.load(name or SIGLIP2, device=device, allow_download=settings["allow_download"])


def encode(
    edits: EncodedEdits, encoders: Encoders, dropout: bool, processes: Processes
) -> tuple[Names, dict[str, Any]]:
    """Fill the cache, all processes together; what encodings are found by, and who made the conditions."""
    names = Names.of(encoders)
    share = Share(processes.rank, processes.world)
    total = len(share.turns(len(edits)))
    with tqdm(total=total, desc="encoding the data set", unit="edit", disable=not processes.main) as bar:
        edits.encode(names, encoders, dropout, share, lambda done: bar.update(done - bar.n))
    edits.encodings.hashes.save()
    processes.barrier()
    edits.encodings.hashes.load()  # the others' parts: each picture is hashed by one process, not by all
    if encoders.condition is not None:
        return names, dict(encoders.condition.info())
    dim = edits.read(0, edits.data[0].prompt, names).condition.dim
    return names, {"kind": BackboneHiddenEncoder.kind, "id": encoders.backbone.id, "dim": dim}
