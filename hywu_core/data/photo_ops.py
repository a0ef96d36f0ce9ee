"""The photographic operations: exact procedural edits of real photographs, half of them in conflicting pairs.

An operation of kind 'forward' edits the photograph. An operation of kind 'inverse' undoes something: its
source is made from the photograph by `degrade`, and the photograph is its target. Images are float
(B, 3, H, W) in [0, 1] on any device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .ops import colour, detail, geometry, light, tone


@dataclass(frozen=True)
class PhotoOp:
    """One operation.

    `apply` is the exact function of a source; an inverse operation without an exact formula has none.
    `degrade` makes the source of an inverse operation from a photograph. `split` says who learns it: 'base'
    in pretraining, 'hywu' the generator. `opposite` is the operation that asks for the contrary.
    """

    id: str
    family: str
    opposite: str | None
    split: Literal["base", "hywu"]
    kind: Literal["forward", "inverse"]
    apply: Callable[[Tensor], Tensor] | None
    degrade: Callable[[Tensor, torch.Generator | None], Tensor] | None
    summary: str


_FAMILIES = {
    tone: """brighten darken more_contrast less_contrast lift_shadows crush_blacks negative negative_luma
        posterize threshold solarize""",
    colour: """warm cool saturate mute greyscale sepia cyanotype red_tint cyan_tint green_tint magenta_tint
        swap_red_blue swap_red_green hue_opposite thermal duotone rainbow night sunset grey_left
        grey_right""",
    detail: """blur deblur sharpen glow haze dehaze denoise pixelate motion_horizontal motion_vertical
        zoom_blur emboss sketch neon_edges cartoon tilt_shift""",
    light: """age restore vignette remove_vignette white_vignette darken_top darken_bottom darken_left
        darken_right""",
    geometry: """flip_horizontal flip_vertical rotate_180 mirror_left mirror_right zoom_in zoom_out bulge
        pinch swirl tile kaleidoscope white_frame black_frame letterbox pillarbox blinds bars identity""",
}

_OPPOSITES = """
    brighten/darken more_contrast/less_contrast lift_shadows/crush_blacks negative/negative_luma
    warm/cool saturate/mute sepia/cyanotype red_tint/cyan_tint green_tint/magenta_tint grey_left/grey_right
    blur/deblur haze/dehaze motion_horizontal/motion_vertical sketch/neon_edges
    age/restore vignette/remove_vignette darken_top/darken_bottom darken_left/darken_right
    mirror_left/mirror_right zoom_in/zoom_out bulge/pinch tile/kaleidoscope white_frame/black_frame
    letterbox/pillarbox blinds/bars
"""

_BASE = """
    identity brighten more_contrast negative posterize warm saturate greyscale sepia swap_red_blue
    red_tint blur haze pixelate emboss vignette darken_top darken_left age flip_horizontal flip_vertical
    rotate_180 mirror_left zoom_in bulge tile swirl white_frame letterbox blinds denoise sketch
"""

_Degrade = Callable[[Tensor, torch.Generator | None], Tensor]


def _without_chance(function: Callable[[Tensor], Tensor]) -> _Degrade:
    return lambda x, generator: function(x)


_DEGRADE: dict[str, _Degrade] = {
    "deblur": _without_chance(detail.defocus),
    "denoise": detail.grain,
    "dehaze": _without_chance(detail.haze),
    "restore": _without_chance(light.age),
    "remove_vignette": _without_chance(light.vignette),
}
_SUMMARIES = {
    "deblur": "Bring a photograph that is out of focus back into focus.",
    "denoise": "Remove strong grain.",
    "restore": "Make an old, faded photograph new again.",
}


def _registry() -> dict[str, PhotoOp]:
    opposites = dict(pair.split("/") for pair in _OPPOSITES.split())
    opposites |= {b: a for a, b in opposites.items()}
    base = set(_BASE.split())
    ops = {}
    for family, names in _FAMILIES.items():
        for name in names.split():
            function = getattr(family, name, None)
            summary = _SUMMARIES[name] if function is None else function.__doc__
            ops[name] = PhotoOp(
                id=name,
                family=family.__name__.rpartition(".")[2],
                opposite=opposites.get(name),
                split="base" if name in base else "hywu",
                kind="inverse" if name in _DEGRADE else "forward",
                apply=function,
                degrade=_DEGRADE.get(name),
                summary=summary,
            )
    return ops


OPS: dict[str, PhotoOp] = _registry()


def make_pair(op: PhotoOp, photo: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Source and target (B, 3, H, W) of an operation on photographs; `generator` draws denoise's grain."""
    if op.degrade is not None:
        return op.degrade(photo, generator), photo
    return photo, op.apply(photo)


def altered(op: PhotoOp, photo: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The image (B, 3, H, W) of an operation's pair that is not the photograph itself."""
    source, target = make_pair(op, photo, generator)
    return target if op.kind == "forward" else source


def exact(op: PhotoOp, source: Tensor, clean: Tensor | None = None) -> Tensor | None:
    """The exact result for a source; None where only the clean photograph, not given, would tell.

    `clean` is the photograph that `op.degrade` made this source from; leave it out for any other source.
    """
    if op.kind == "inverse" and clean is not None:
        return clean
    return None if op.apply is None else op.apply(source)
