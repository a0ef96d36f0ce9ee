"""Generate LoRA: one pass of the generator for each condition that is new."""

from __future__ import annotations

import logging

import comfy.model_management
import comfy.utils
from comfy_api.v0_0_2 import io

from ..hywu_core.apply.comfy import lora_model
from ..hywu_core.conditions import Condition
from ..hywu_core.generate import generate_kept
from ..hywu_core.generator.memory import plan_of
from ..hywu_core.lora.limits import Limits
from ..hywu_core.lora.norm_table import norm_table
from .backports import search_words, shown_again
from .heat_maps import as_shown
from .kept import CACHES, caches_of
from .sockets import CATEGORY, AdapterSocket, ConditionSocket, GeneratorSocket, LoadedGenerator

logger = logging.getLogger("hywu")

_HEAT_MAPS = 8  # of a batch


class GenerateLoRA(io.ComfyNode):
    """A HYWU_CONDITION to a HYWU_ADAPTER and core's LORA_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HYWU_GenerateLoRA",
            display_name="Generate LoRA",
            category=CATEGORY,
            description="Writes a LoRA for each condition in one pass of the generator; nothing is trained.",
            **shown_again(),
            **search_words("hypernetwork", "lora", "weights", "parameter generator"),
            inputs=[
                GeneratorSocket.Input("generator", tooltip="The one that the condition was encoded for."),
                ConditionSocket.Input("condition", tooltip="A batch gives a LoRA for each."),
                _norm_bound(
                    "max_norm",
                    "Bound on the norm of the whole update; a larger one is scaled down. 0: no "
                    "bound. The node says what the norm was.",
                ),
                _norm_bound("max_norm_per_target", "Bound on the norm of each layer's update. 0: no bound."),
                io.Int.Input(
                    "max_rank",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="Bound on the rank: the nearest update of at most this rank. 0: as generated.",
                ),
                io.Combo.Input(
                    "cache",
                    options=list(CACHES),
                    default=CACHES[0],
                    optional=True,
                    tooltip="Where LoRAs are kept, so that a condition seen before costs nothing. memory: as "
                    "long as the generator is loaded. memory and disk: also in user/__hywu_cache, for later "
                    "starts. Changing a bound never generates again.",
                ),
            ],
            outputs=[
                AdapterSocket.Output(
                    display_name="adapter", tooltip="One LoRA for each condition, for Apply Generated LoRA."
                ),
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="The first of them, for the core nodes that take a LoRA model.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        generator: LoadedGenerator,
        condition: Condition,
        max_norm: float = 0.0,
        max_norm_per_target: float = 0.0,
        max_rank: int = 0,
        cache: str = CACHES[0],
    ) -> io.NodeOutput:
        """Generate what is new, then bound."""
        logger.info("Generate LoRA: %d conditions", condition.batch)
        adapter, n_kept = generate_kept(
            generator.generator,
            condition,
            generator.fingerprint,  # before it moves: its weights are read where they lie
            caches_of(generator, cache),
            _Progress(),
            "cpu",  # so that what is kept never fills a GPU behind ComfyUI's back
            load=lambda: _load(generator, condition.tokens.shape[1]),
            load_device=generator.patcher.load_device,
        )
        adapter, bounded = Limits.of_widgets(max_norm, max_norm_per_target, max_rank).apply(adapter)
        tables = [norm_table(adapter, index) for index in range(min(adapter.batch, _HEAT_MAPS))]
        report = [
            f"{adapter.batch} {'LoRA' if adapter.batch == 1 else 'LoRAs'} of rank {adapter.rank} for "
            f"{len(adapter)} targets: {adapter.batch - n_kept} generated, {n_kept} from the cache",
            *bounded,
        ]
        if adapter.batch > _HEAT_MAPS:
            report.append(f"Heat maps of the first {_HEAT_MAPS}; Inspect Adapter shows the others")
        for line in report:
            logger.info("Generate LoRA: %s", line)
        ui = {"hywu_report": report, "hywu_heat_map": as_shown(tables)}
        return io.NodeOutput(adapter, lora_model(adapter), ui=ui)


def _load(generator: LoadedGenerator, n_condition: int) -> None:
    """Load the generator, with room for a forward pass: conditions go through it one by one."""
    plan = plan_of(generator.generator, n_condition, device=generator.patcher.load_device)
    comfy.model_management.load_models_gpu(
        [generator.patcher], memory_required=plan.extra, force_full_load=True
    )


def _norm_bound(name: str, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=0.0, min=0.0, max=1e6, step=0.1, round=0.0001, optional=True, tooltip=tooltip
    )


class _Progress:
    """ComfyUI's progress bar, moved block by block; the place where a run is cancelled."""

    def __init__(self) -> None:
        self.bar: comfy.utils.ProgressBar | None = None

    def __call__(self, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.bar is None:
            self.bar = comfy.utils.ProgressBar(total)
        self.bar.update_absolute(done, total)
