"""The module names of the backbones whose LoRA files everybody exchanges, one table for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .adapter import Adapter


class HeaderNames(NamedTuple):
    """What a LoRA file's header calls a backbone: for modelspec, and as kohya's trainers do."""

    modelspec: str
    base_model_version: str


@dataclass(frozen=True, eq=False)
class Architecture:
    """How one family of backbones and its LoRA files name things.

    families: words by which ids of its backbones are known.
    prefix: what stock loaders expect before a target name.
    header: what the file's header calls the backbone.
    variants: words in a backbone's id -> what the header calls it instead, the most specific first.
    blocks: target ModuleList -> (original ModuleList, {original module: target modules}), where "original" is
        the naming of the first release. An original module that is several targets is fused: their outputs
        follow each other in its rows.
    loose: modules outside the blocks, original name -> target name.
    turned: targets whose output rows come in two halves that change places in the original module.
    aliases: target ModuleList -> more names of modules that only some files use.
    aspects: original module -> outputs for each input, which tell it from another with the same names.
    """

    name: str
    families: tuple[str, ...]
    prefix: str
    header: HeaderNames
    blocks: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]]
    loose: Mapping[str, str] = field(default_factory=dict)
    turned: frozenset[str] = frozenset()
    aliases: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    variants: Mapping[str, HeaderNames] = field(default_factory=dict)
    aspects: Mapping[str, Fraction] = field(default_factory=dict)

    def header_of(self, base: str) -> HeaderNames:
        """What a file's header calls the backbone with this id, "" if it is unknown."""
        words = base.lower().replace("_", "-")
        return next((names for word, names in self.variants.items() if word in words), self.header)

    def targets_of(self, name: str) -> tuple[str, ...] | None:
        """The targets that a module is, by its target name, its original one, or either with "_" for "."."""
        if name in self._loose_spellings:
            return (self._loose_spellings[name],)
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        blocks, modules = self._spellings[match[1]]
        parts = modules.get(match[3])
        return None if parts is None else tuple(f"{blocks}.{match[2]}.{part}" for part in parts)

    def original_of(self, target: str) -> tuple[str, tuple[str, ...]]:
        """The original module that holds a target, and all targets it holds. The target must be known."""
        for original, loose in self.loose.items():
            if loose == target:
                return original, (target,)
        blocks, index, module = target.split(".", 2)
        original_blocks, modules = self.blocks[blocks]
        original, parts = next((o, parts) for o, parts in modules.items() if module in parts)
        return f"{original_blocks}.{index}.{original}", tuple(f"{blocks}.{index}.{part}" for part in parts)

    def turns(self, name: str) -> bool:
        """Whether this is an original name whose output rows come in the other order than the target's."""
        originals = (original for original, target in self.loose.items() if target in self.turned)
        return any(name in (original, original.replace(".", "_")) for original in originals)

    def in_blocks(self, name: str) -> bool:
        """Whether this is any name of a module of a block."""
        return name not in self._loose_spellings and self.targets_of(name) is not None

    def has_aspect(self, name: str, d_in: int, d_out: int) -> bool:
        """Whether a module of this name and these sizes is one that only this architecture has."""
        match = self._pattern.fullmatch(name)
        return match is not None and _with_flat(self.aspects).get(match[3]) == Fraction(d_out, d_in)

    def has(self, target: str) -> bool:
        """Whether this is the name of a target."""
        return self.targets_of(target) == (target,)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"({'|'.join(self._spellings)})[._](\d+)[._](.+)")

    @cached_property
    def _spellings(self) -> dict[str, tuple[str, dict[str, tuple[str, ...]]]]:
        """Any name of a ModuleList -> (target ModuleList, {any name of a module: target modules})."""
        spellings = {}
        for blocks, (original_blocks, modules) in self.blocks.items():
            targets = {part: (part,) for parts in modules.values() for part in parts}
            spellings[original_blocks] = (blocks, _with_flat({**modules, **self.aliases.get(blocks, {})}))
            spellings[blocks] = (blocks, _with_flat(targets))
        return spellings

    @cached_property
    def _loose_spellings(self) -> dict[str, str]:
        return _with_flat({**self.loose, **{target: target for target in self.loose.values()}})


def _with_flat(names: Mapping) -> dict:
    return {**{name.replace(".", "_"): value for name, value in names.items()}, **names}


def _same(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


FLUX = Architecture(
    name="flux",
    families=("flux", "longcat"),
    prefix="transformer.",
    header=HeaderNames("Flux.1-dev/lora", "flux1"),
    # A narrower FLUX: its LoRAs have FLUX's names and do not fit it. No other trainer names it in headers.
    variants={
        "longcat-image-edit": HeaderNames("LongCat-Image-Edit/lora", "longcat_image"),
        "longcat": HeaderNames("LongCat-Image/lora", "longcat_image"),
        **dict.fromkeys(("flux.2", "flux-2", "flux2"), HeaderNames("Flux.2-dev/lora", "flux2")),
    },
    blocks={
        "transformer_blocks": (
            "double_blocks",
            {
                "img_mod.lin": ("norm1.linear",),
                "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "img_attn.proj": ("attn.to_out.0",),
                "img_mlp.0": ("ff.net.0.proj",),
                "img_mlp.2": ("ff.net.2",),
                "txt_mod.lin": ("norm1_context.linear",),
                "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                "txt_attn.proj": ("attn.to_add_out",),
                "txt_mlp.0": ("ff_context.net.0.proj",),
                "txt_mlp.2": ("ff_context.net.2",),
            },
        ),
        "single_transformer_blocks": (
            "single_blocks",
            {
                "modulation.lin": ("norm.linear",),
                "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
                "linear2": ("proj_out",),
            },
        ),
    },
    loose={
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
        "final_layer.linear": "proj_out",
    },
    # The attention processors of XLabs' files, and ComfyUI's name for the first three slices of linear1.
    aliases={
        "transformer_blocks": {
            "processor.qkv_lora1": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "processor.qkv_lora2": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "processor.proj_lora1": ("attn.to_out.0",),
            "processor.proj_lora2": ("attn.to_add_out",),
        },
        "single_transformer_blocks": {
            "processor.qkv_lora": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "linear1_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "processor.proj_lora": ("proj_out",),
        },
    },
    turned=frozenset({"norm_out.linear"}),  # shift and scale in the release, scale and shift in diffusers
)

# It has FLUX.1's original names over other sizes: its MLPs are gated. Its targets are these names themselves:
# every ComfyUI knows them, and only new ones some of those that diffusers has for it.
FLUX_2 = Architecture(
    name="flux2",
    families=("flux.2", "flux-2", "flux2", "flux_2"),
    prefix="diffusion_model.",
    header=HeaderNames("Flux.2-dev/lora", "flux2"),
    blocks={
        "double_blocks": (
            "double_blocks",
            _same(*(f"{s}_{m}" for s in ("img", "txt") for m in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2"))),
        ),
        "single_blocks": ("single_blocks", _same("linear1", "linear2")),
    },
    loose={
        name: name
        for name in (
            *("img_in", "txt_in", "time_in.in_layer", "time_in.out_layer"),
            *("guidance_in.in_layer", "guidance_in.out_layer"),
            *("double_stream_modulation_img.lin", "double_stream_modulation_txt.lin"),
            *("single_stream_modulation.lin", "final_layer.adaLN_modulation.1", "final_layer.linear"),
        )
    },
    aspects={
        **{"linear1": Fraction(9), "linear2": Fraction(1, 4)},
        **{"img_mlp.0": Fraction(6), "img_mlp.2": Fraction(1, 3)},
        **{"txt_mlp.0": Fraction(6), "txt_mlp.2": Fraction(1, 3)},
    },
)

QWEN_IMAGE = Architecture(
    name="qwen_image",
    families=("qwen",),
    prefix="diffusion_model.",
    header=HeaderNames("Qwen-Image-Edit-Plus/lora", "qwen_image"),
    # The names that musubi-tuner writes.
    variants={
        "edit-2511": HeaderNames("Qwen-Image-Edit-2511/lora", "qwen_image"),
        "edit-2509": HeaderNames("Qwen-Image-Edit-Plus/lora", "qwen_image"),
        "edit-plus": HeaderNames("Qwen-Image-Edit-Plus/lora", "qwen_image"),
        "qwen-image-edit": HeaderNames("Qwen-Image-Edit/lora", "qwen_image"),
        "qwen-image": HeaderNames("Qwen-Image/lora", "qwen_image"),
    },
    blocks={
        "transformer_blocks": (
            "transformer_blocks",
            _same(
                *(f"attn.{m}" for m in ("to_q", "to_k", "to_v", "to_out.0")),
                *(f"attn.{m}" for m in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
                *(
                    f"{stream}_{m}"
                    for stream in ("img", "txt")
                    for m in ("mlp.net.0.proj", "mlp.net.2", "mod.1")
                ),
            ),
        )
    },
    loose={
        name: name
        for name in (
            "img_in",
            "txt_in",
            "proj_out",
            "norm_out.linear",
            "time_text_embed.timestep_embedder.linear_1",
            "time_text_embed.timestep_embedder.linear_2",
        )
    },
)

ARCHITECTURES = (FLUX, QWEN_IMAGE, FLUX_2)


def architecture_of(targets: Iterable[str]) -> Architecture | None:
    """The architecture that has all these targets; None if it is another one, or if several have them."""
    targets = list(targets)
    fitting = [a for a in ARCHITECTURES if all(a.has(target) for target in targets)]
    return fitting[0] if len(fitting) == 1 else None


def architecture_for(targets: Iterable[str], base: str = "") -> Architecture | None:
    """As `architecture_of`, but where several have all targets, the backbone's id decides if it can."""
    targets = list(targets)
    certain = architecture_of(targets)
    if certain is not None or not base:
        return certain
    words = base.lower()
    named = [a for a in ARCHITECTURES if any(family in words for family in a.families)]
    fitting = [a for a in named if all(a.has(target) for target in targets)]
    return fitting[0] if len(fitting) == 1 else None


def describe_adapter(adapter: Adapter) -> str:
    """How large an adapter is and what it was made for, in a line for people."""
    return f"{len(adapter)} targets of rank {adapter.rank}, for {describe_backbone(adapter)}"


def describe_backbone(adapter: Adapter) -> str:
    """What an adapter was made for, for people: its backbone's id, else its architecture's name."""
    base = adapter.provenance.get("base")
    architecture = architecture_for(adapter, base or "")
    if architecture is None:
        return base or "an unknown backbone"
    name = architecture.header_of(base or "").modelspec.removesuffix("/lora")
    return f"{base} ({name})" if base and base != name else name


def likeliest(modules: Mapping[str, tuple[int, int]]) -> Architecture | None:
    """The architecture that knows most of these modules, if it knows all or any of a block; else None.

    Outside of blocks other models have modules of the same names. If two know the same names, they agree on
    them, or it is the one whose sizes the modules have.

    modules: by any of their names, (d_in, d_out).
    """

    def rank(architecture: Architecture) -> tuple[int, int]:
        known = sum(architecture.targets_of(name) is not None for name in modules)
        return known, sum(architecture.has_aspect(name, *dims) for name, dims in modules.items())

    best = max(ARCHITECTURES, key=rank)
    its_own = rank(best)[0] == len(modules) or any(map(best.in_blocks, modules))
    return best if its_own else None
