"""Quantising: what a generator in fewer bits does to the LoRAs it writes, and to the pictures they edit.

Every case is edited with the generator in float32 and again, from the same noise, with one in fewer bits.
The LoRAs are compared as updates, B A of every target; the pictures with each other and with exact results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.metrics import psnr
from ..data.photo_ops import OPS
from ..embedded import GENERATOR
from ..errors import HywuError
from ..generator import load_generator
from ..generator.quantize import QuantizedLinear, integer_products, quantization_of
from ..lora import Adapter
from ..pipeline import DEFAULT_STEPS, HywuPipeline
from ..train.world import EditCase, held_out_cases
from .frame import OfGenerator, Result, Study, option
from .told import counted
from .work import Work

# Name -> how the generator is loaded, and whether int8 may multiply integers.
PRECISIONS: dict[str, tuple[dict[str, Any], bool]] = {
    "bfloat16": ({"dtype": torch.bfloat16}, True),
    "int8": ({"quantize": "int8"}, True),
    "int8, weights only": ({"quantize": "int8"}, False),
    "fp8": ({"quantize": "fp8"}, True),
}
_BATCH = 8


@dataclass(frozen=True)
class QuantiseConfig(OfGenerator):
    """How much is edited."""

    photos: int = option(4, "held-out photographs, at most", quick=1)
    every: int = option(1, "take every so many-th of the operations that the generator learned", quick=4)
    steps: int = option(DEFAULT_STEPS, "sampling steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("photos", "every", "steps")


@dataclass(frozen=True)
class Compared:
    """One case in fewer bits, beside the same in float32; decibels of PSNR."""

    photo: int
    operation: str
    update_error: float  # Frobenius norm of the updates' difference, all targets together, over float32's
    update_cosine: float
    to_full_db: float  # between the two pictures
    to_exact_db: float
    full_to_exact_db: float


def update_errors(adapter: Adapter, full: Adapter) -> list[tuple[float, float]]:
    """(relative Frobenius error, cosine) of each adapter's update against that of its twin in `full`."""
    sums = torch.zeros(4, full.batch, dtype=torch.float64)
    for name, (A, B) in full.items():
        wanted = (full.scale * (B.float() @ A.float())).flatten(1).cpu().double()
        other_A, other_B = adapter[name]
        update = (adapter.scale * (other_B.float() @ other_A.float())).flatten(1).cpu().double()
        products = ((update - wanted, update - wanted), (wanted, wanted), (update, update), (update, wanted))
        sums += torch.stack([(a * b).sum(1) for a, b in products])
    wrong, wanted, own, both = sums
    return list(zip((wrong / wanted).sqrt().tolist(), (both / (wanted * own).sqrt()).tolist(), strict=True))


def _edits(
    pipeline: HywuPipeline, cases: Sequence[EditCase], steps: int, seed: int, label: str
) -> list[tuple[EditCase, Tensor, Adapter]]:
    """(case, picture (3, H, W), adapter of batch 1) of every case, in batches of one photograph."""
    made = []
    groups = [[c for c in cases if c.photo == photo] for photo in sorted({c.photo for c in cases})]
    chunks = [group[i : i + _BATCH] for group in groups for i in range(0, len(group), _BATCH)]
    for chunk in tqdm(chunks, desc=f"editing in {label}", unit="batch"):
        sources = torch.stack([case.source for case in chunk])
        edit = pipeline.edit(sources, [case.prompt for case in chunk], seed=seed, steps=steps, area=None)
        adapter = edit.adapter.cpu()
        _require_updates(adapter, chunk, label)
        made += [(case, edit.image[i].cpu(), adapter.select(i)) for i, case in enumerate(chunk)]
    return made


def _require_updates(adapter: Adapter, cases: Sequence[EditCase], label: str) -> None:
    """HywuError if one of the adapters changes nothing: errors are relative to what float32 changes."""
    for row, case in enumerate(cases):
        if not any(A[row].any() and B[row].any() for A, B in adapter.values()):
            raise HywuError(
                f"In {label} the generator writes a zero update for {case.operation}, so that there is "
                "nothing to compare; give one that has been trained."
            )


def _psnr(image: Tensor, other: Tensor) -> float:
    return float(psnr(image[None], other[None]))


def compare(
    pipeline: HywuPipeline,
    path: Path,
    cases: Sequence[EditCase],
    steps: int,
    seed: int = 0,
    keep: Callable[[str, Callable[[], Result]], Result] = lambda name, make: make(),
) -> dict[str, Result]:
    """Every precision against float32: the weights' bytes, and each case; `keep` is given every part."""
    exact_generator = pipeline.generator

    @lru_cache  # edited once, and only if a part is still to be made
    def full() -> list[tuple[EditCase, Tensor, Adapter]]:
        pipeline.generator = exact_generator
        return _edits(pipeline, cases, steps, seed, "float32")

    def against_full(name: str) -> Result:
        exact = full()
        pipeline.generator = _load(path, pipeline.device, *PRECISIONS[name])
        size = n_bytes(pipeline.generator)
        edits = _edits(pipeline, cases, steps, seed, name)
        rows = [_compared(case, *was, *now) for (case, *was), (_, *now) in zip(exact, edits, strict=True)]
        return {"bytes": size, **summarise(rows), "cases": [asdict(row) for row in rows]}

    return {name: keep(name, lambda name=name: against_full(name)) for name in PRECISIONS}


def _load(path: Path, device: torch.device, how: dict[str, Any], integers: bool) -> torch.nn.Module:
    """The generator in one of the precisions."""
    generator = load_generator(path, device=device, **{"dtype": torch.float32, **how}).eval()
    for module in generator.modules():
        if isinstance(module, QuantizedLinear):
            module.integer_activations = integers
    return generator


def _compared(
    case: EditCase, exact_image: Tensor, exact: Adapter, image: Tensor, adapter: Adapter
) -> Compared:
    error, cosine = update_errors(adapter, exact)[0]
    return Compared(
        photo=case.photo,
        operation=case.operation,
        update_error=error,
        update_cosine=cosine,
        to_full_db=_psnr(image, exact_image),
        to_exact_db=_psnr(image, case.target),
        full_to_exact_db=_psnr(exact_image, case.target),
    )


def n_bytes(generator: torch.nn.Module) -> int:
    """What its weights take in memory."""
    return sum(tensor.nbytes for tensor in generator.state_dict().values())


def summarise(rows: Sequence[Compared]) -> dict[str, float]:
    """Means, and the worst case."""
    n = len(rows)
    return {
        "update_error": math.fsum(r.update_error for r in rows) / n,
        "worst_update_error": max(r.update_error for r in rows),
        "worst_cosine": min(r.update_cosine for r in rows),
        "to_full_db": math.fsum(r.to_full_db for r in rows) / n,
        "worst_to_full_db": min(r.to_full_db for r in rows),
        "change_to_exact_db": math.fsum(r.to_exact_db - r.full_to_exact_db for r in rows) / n,
        "worst_change_to_exact_db": min(r.to_exact_db - r.full_to_exact_db for r in rows),
    }


def run(config: QuantiseConfig, work: Work) -> Result:
    """Measure."""
    path = config.generator if config.generator is not None else GENERATOR
    pipeline = HywuPipeline.from_embedded(path, config.computes_on)
    if (kept := quantization_of(pipeline.generator)) is not None:
        raise HywuError(f"{path} is in {kept} already; compare precisions of the file it was made from.")
    pipeline.generator.float()  # whatever the file is in
    size, provenance = n_bytes(pipeline.generator), pipeline.generator.provenance
    operations = [name for name, op in OPS.items() if op.split == "hywu"][:: config.every]
    cases = held_out_cases(operations, 1, config.photos)
    return {
        "photographs": len({case.photo for case in cases}),
        "operations": operations,
        "generator": provenance,
        "integer_products": integer_products(pipeline.device),
        "float32": {"bytes": size},
        "precisions": compare(
            pipeline, path, cases, config.steps, config.seed, lambda name, make: work.unit(name, make=make)
        ),
    }


def report(result: Result) -> str:
    """The result as a page whose every number comes from it."""
    products = "multiplied as integers" if result["integer_products"] else "written out for each product"
    lines = [
        "# Quantising",
        "",
        f"{len(result['operations'])} operations on {counted(result['photographs'], 'held-out photograph')}, "
        f"{result['config']['steps']} sampling steps, each edited with the same noise as in float32. An "
        "update's error is the Frobenius norm of its difference from float32's over that of float32's, all "
        f"targets together; pictures are compared by PSNR. int8 was {products} here.",
        "",
        "| precision | weights, MB | update's error | worst | worst cosine | to float32's picture, dB "
        "| worst | to the exact result, dB more | worst |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| float32 | {result['float32']['bytes'] / 1e6:.1f} | | | | | | | |",
    ]
    for name, part in result["precisions"].items():
        lines.append(
            f"| {name} | {part['bytes'] / 1e6:.1f} | {part['update_error']:.2%} | "
            f"{part['worst_update_error']:.2%} | {part['worst_cosine']:.5f} | {part['to_full_db']:.1f} | "
            f"{part['worst_to_full_db']:.1f} | {part['change_to_exact_db']:+.3f} | "
            f"{part['worst_change_to_exact_db']:+.2f} |"
        )
    return "\n".join(lines) + "\n"


STUDY = Study(QuantiseConfig, run, report)
