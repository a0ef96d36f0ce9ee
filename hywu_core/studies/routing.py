"""Routing: does an edit land on the operation asked for, in words and on photographs never trained on?

Shapes: C cases, O operations, H x W pixels.

For every case the exact results of all operations are computed on the same source; the edit is *routed* to
the one it is nearest to by PSNR. Inverse operations count as candidates wherever their exact result is known.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ..data.instructions import LANGUAGES, SPLITS
from ..data.metrics import psnr
from ..data.photo_ops import OPS, exact
from ..embedded.autoencoder import TinyAutoencoder
from ..pipeline import HywuPipeline
from ..train.world import EditCase, held_out_cases, judge


@dataclass(frozen=True)
class Routed:
    """One edit and where it landed; everything in dB of PSNR to the exact result."""

    photo: int
    operation: str
    language: str
    prompt: str
    nearest: str
    edited: float
    frozen_base: float
    untouched: float
    ceiling: float  # what the autoencoder itself makes of the exact result

    @property
    def right(self) -> bool:
        """Whether the edit is nearest to the operation asked for."""
        return self.nearest == self.operation


def exact_results(case: EditCase) -> dict[str, Tensor]:
    """The exact result (3, H, W) of every operation on a case's source, where it is known."""
    results = {}
    for name, op in OPS.items():
        clean = case.clean[None] if name == case.operation else None
        result = exact(op, case.source[None], clean)
        if result is not None:
            results[name] = result[0]
    return results


def nearest_operation(image: Tensor, results: dict[str, Tensor]) -> str:
    """The operation whose exact result has the highest PSNR to an image (3, H, W)."""
    scores = psnr(image[None].expand(len(results), -1, -1, -1), torch.stack(list(results.values())))
    return list(results)[int(scores.argmax())]


@torch.no_grad()
def autoencoder_ceiling(autoencoder: TinyAutoencoder, target: Tensor) -> float:
    """PSNR of a target (3, H, W) after the autoencoder alone: no edit can be expected to be nearer."""
    target = target[None].to(next(autoencoder.parameters()).device)
    return float(psnr(autoencoder.decode(autoencoder.encode(target)), target))


def route(pipeline: HywuPipeline, cases: Sequence[EditCase], steps: int) -> list[Routed]:
    """Edit every case with and without the generated LoRA and say where the edits land."""
    edited = judge(pipeline, cases, steps=steps)
    frozen = judge(pipeline, cases, steps=steps, frozen_base=True)
    # Cases of one photograph share their source unless an operation degrades it, and wordings their target.
    results: dict[tuple[int, str], dict[str, Tensor]] = {}
    ceilings: dict[tuple[int, str], float] = {}
    routed = []
    for with_lora, without in zip(edited, frozen, strict=True):
        case = with_lora.case
        inverse = OPS[case.operation].kind == "inverse"
        source, asked = (case.photo, case.operation if inverse else ""), (case.photo, case.operation)
        if source not in results:
            results[source] = exact_results(case)
        if asked not in ceilings:
            ceilings[asked] = autoencoder_ceiling(pipeline.autoencoder, case.target)
        routed.append(
            Routed(
                photo=case.photo,
                operation=case.operation,
                language=case.phrase.language,
                prompt=case.prompt,
                nearest=nearest_operation(with_lora.result, results[source]),
                edited=with_lora.score,
                frozen_base=without.score,
                untouched=with_lora.untouched,
                ceiling=ceilings[asked],
            )
        )
    return routed


def _interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and its 95% bootstrap interval."""
    data = np.asarray(values, dtype=float)
    if len(data) < 2 or np.ptp(data) == 0:
        return {"mean": float(data.mean()), "low": float(data.mean()), "high": float(data.mean())}
    found = stats.bootstrap(
        (data,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    )
    low, high = found.confidence_interval
    return {"mean": float(data.mean()), "low": float(low), "high": float(high)}


def summarise(routed: Sequence[Routed]) -> dict[str, object]:
    """The numbers of a set of routed edits."""
    wrong = Counter((r.operation, r.nearest) for r in routed if not r.right)
    return {
        "cases": len(routed),
        "accuracy": _interval([float(r.right) for r in routed]),
        "edited_db": _interval([r.edited for r in routed]),
        "gain_over_untouched_db": _interval([r.edited - r.untouched for r in routed]),
        "gain_over_frozen_base_db": _interval([r.edited - r.frozen_base for r in routed]),
        "below_ceiling_db": _interval([r.ceiling - r.edited for r in routed]),
        "confusions": [{"asked": a, "landed": b, "times": n} for (a, b), n in wrong.most_common(20)],
    }


def run(out: Path, generator: Path | None, device: str, quick: bool, steps: int) -> dict[str, object]:
    """Measure, then write `result.json`, `routing.png` and `report.md` into `out`; returns the result."""
    pipeline = HywuPipeline.from_embedded(generator, device)
    out.mkdir(parents=True, exist_ok=True)  # only now: a bad generator leaves nothing behind
    operations = tuple(OPS)
    photos, wordings, languages = (1, 1, ("en",)) if quick else (None, 2, LANGUAGES)
    splits = ("held_out",) if quick else SPLITS
    groups = {
        split: route(
            pipeline, held_out_cases(operations, wordings, photos, split=split, languages=languages), steps
        )
        for split in splits
    }
    unseen = groups["held_out"]
    subsets = {
        "unseen words": unseen,
        "unseen words, English": [r for r in unseen if r.language == "en"],
        "unseen words, Chinese": [r for r in unseen if r.language == "zh"],
        "unseen words, operations of the generator": [r for r in unseen if OPS[r.operation].split == "hywu"],
        "unseen words, operations of the base": [r for r in unseen if OPS[r.operation].split == "base"],
        "trained words": groups.get("train", []),
    }
    result = {
        "study": "routing",
        "config": {
            "photographs": len({r.photo for r in unseen}),
            "wordings": wordings,
            "steps": steps,
            "seed": 0,
            "quick": quick,
            "generator": pipeline.generator.provenance,
        },
        "subsets": {name: summarise(rows) for name, rows in subsets.items() if rows},
        "operations": {
            name: summarise([r for r in unseen if r.operation == name]) | {"split": OPS[name].split}
            for name in operations
        },
        "cases": [asdict(r) for r in unseen],
    }
    (out / "result.json").write_text(
        json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    _figure(unseen, operations, out / "routing.png")
    (out / "report.md").write_text(report(result), encoding="utf-8")
    return result


def report(result: dict) -> str:
    """The result as a page whose every number comes from it."""
    config = result["config"]
    lines = [
        "# Routing",
        "",
        f"{len(result['operations'])} operations on {config['photographs']} held-out photographs, "
        f"{config['wordings']} wordings in each language, {config['steps']} sampling steps. An edit is right "
        "when, of the exact results of all operations, the one asked for is nearest by PSNR. Brackets are "
        "95% bootstrap intervals.",
        "",
        "| | edits | right | PSNR to exact, dB | over the untouched source, dB | over the frozen base, dB "
        "| below the autoencoder, dB |",
        "|---|---|---|---|---|---|---|",
    ]

    def cell(value: dict[str, float], factor: float = 1.0, unit: str = "") -> str:
        mean, low, high = (f"{value[key] * factor:.1f}" for key in ("mean", "low", "high"))
        return f"{mean}{unit} [{low}, {high}]"

    columns = ("edited_db", "gain_over_untouched_db", "gain_over_frozen_base_db", "below_ceiling_db")
    for name, part in result["subsets"].items():
        cells = [
            str(part["cases"]),
            cell(part["accuracy"], 100, "%"),
            *(cell(part[column]) for column in columns),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Most frequent confusions (unseen words): " + "; ".join(
        f"{c['asked']} lands on {c['landed']} ({c['times']} times)"
        for c in result["subsets"]["unseen words"]["confusions"][:10]
    ) + "."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _figure(routed: Sequence[Routed], operations: Sequence[str], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    index = {name: i for i, name in enumerate(operations)}
    matrix = np.zeros((len(operations), len(operations)))
    for r in routed:
        matrix[index[r.operation], index[r.nearest]] += 1
    matrix /= matrix.sum(axis=1, keepdims=True).clip(1)
    figure = Figure(figsize=(12, 11), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
    axes.set_xticks(range(len(operations)), operations, rotation=90, fontsize=6)
    axes.set_yticks(range(len(operations)), operations, fontsize=6)
    axes.set(
        xlabel="nearest exact result", ylabel="operation asked for", title="Where edits land (unseen words)"
    )
    figure.colorbar(shown, ax=axes, shrink=0.6, label="share of the edits")
    figure.savefig(path, dpi=120)
