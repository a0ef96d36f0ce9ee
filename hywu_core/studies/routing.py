"""Routing: does an edit land on the operation asked for, in words and on photographs never trained on?

Shapes: C cases, O operations, H x W pixels.

For every case the exact results of all operations are computed on the same source; the edit is *routed* to
the one it is nearest to by PSNR. Inverse operations count as candidates wherever their exact result is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

from ..data.instructions import LANGUAGES, SPLITS, require_phrases
from ..data.metrics import EQUAL, psnr
from ..data.photo_ops import OPS, exact
from ..embedded.autoencoder import TinyAutoencoder
from ..pipeline import DEFAULT_STEPS, HywuPipeline
from ..train.world import EditCase, held_out_cases, judge
from .frame import OfGenerator, Result, Study, option
from .statistics import Interval, cell, clustered_interval
from .style import AMOUNTS, panel, sheet
from .told import counted
from .work import Work


@dataclass(frozen=True)
class RoutingConfig(OfGenerator):
    """How much is edited; always in English and Chinese, in trained and in unseen words."""

    photos: int = option(4, "held-out photographs, at most", quick=1)
    wordings: int = option(2, "phrases of each operation, language and split", quick=1)
    every: int = option(1, "ask for every so many-th operation; all stay candidates", quick=5)
    steps: int = option(DEFAULT_STEPS, "sampling steps", quick=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("photos", "wordings", "every", "steps")
        for split in SPLITS:
            require_phrases("wordings", self.wordings, split, tuple(OPS)[:: self.every], LANGUAGES)


@dataclass(frozen=True)
class Routed:
    """One edit and where it landed; everything in dB of PSNR to the exact result."""

    photo: int
    operation: str
    language: str
    split: str  # of the words: "train" or "held_out"
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


def route(
    pipeline: HywuPipeline, cases: Sequence[EditCase], split: str, steps: int, seed: int = 0
) -> list[Routed]:
    """Edit every case, in words of a split, with and without the generated LoRA; say where it lands."""
    edited = judge(pipeline, cases, steps=steps, seed=seed)
    frozen = judge(pipeline, cases, steps=steps, seed=seed, frozen_base=True)
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
                split=split,
                prompt=case.prompt,
                nearest=nearest_operation(with_lora.result, results[source]),
                edited=with_lora.score,
                frozen_base=without.score,
                untouched=with_lora.untouched,
                ceiling=ceilings[asked],
            )
        )
    return routed


def summarise(routed: Sequence[Routed]) -> dict[str, object]:
    """The numbers of a set of routed edits."""
    wrong = Counter((r.operation, r.nearest) for r in routed if not r.right)
    operations = [r.operation for r in routed]
    # Where a photograph is to stay as it is, untouched is exact.
    moved = [r for r in routed if r.untouched < EQUAL] or routed

    def over_operations(measure: Callable[[Routed], float]) -> Interval:
        return clustered_interval([measure(r) for r in routed], operations)

    return {
        "cases": len(routed),
        "accuracy": over_operations(lambda r: float(r.right)),
        "edited_db": over_operations(lambda r: r.edited),
        "gain_over_untouched_db": clustered_interval(
            [r.edited - r.untouched for r in moved], [r.operation for r in moved]
        ),
        "gain_over_frozen_base_db": over_operations(lambda r: r.edited - r.frozen_base),
        "below_ceiling_db": over_operations(lambda r: r.ceiling - r.edited),
        "confusions": [{"asked": a, "landed": b, "times": n} for (a, b), n in wrong.most_common(20)],
    }


# What is summed up beside the whole: the words, the languages, and who learned the operation.
SUBSETS: dict[str, Callable[[Routed], bool]] = {
    "unseen words": lambda r: r.split == "held_out",
    "unseen words, English": lambda r: r.split == "held_out" and r.language == "en",
    "unseen words, Chinese": lambda r: r.split == "held_out" and r.language == "zh",
    "unseen words, operations of the generator": lambda r: (
        r.split == "held_out" and OPS[r.operation].split == "hywu"
    ),
    "unseen words, operations of the base": lambda r: (
        r.split == "held_out" and OPS[r.operation].split == "base"
    ),
    "trained words": lambda r: r.split == "train",
    "trained words, English": lambda r: r.split == "train" and r.language == "en",
    "trained words, Chinese": lambda r: r.split == "train" and r.language == "zh",
}


def run(config: RoutingConfig, work: Work) -> Result:
    """Measure, photograph by photograph."""
    pipeline = HywuPipeline.from_embedded(config.generator, config.computes_on)
    operations = tuple(OPS)[:: config.every]
    routed: list[Routed] = []
    for split in SPLITS:
        cases = held_out_cases(operations, config.wordings, config.photos, split=split, languages=LANGUAGES)
        for photo in tqdm(sorted({case.photo for case in cases}), desc=f"words: {split}", unit="photograph"):
            mine = [case for case in cases if case.photo == photo]
            rows = work.unit(
                split,
                f"photograph {photo}",
                make=lambda mine=mine, split=split: [
                    asdict(r) for r in route(pipeline, mine, split, config.steps, config.seed)
                ],
            )
            routed += [Routed(**row) for row in rows]
    unseen = [r for r in routed if SUBSETS["unseen words"](r)]
    return {
        "photographs": len({r.photo for r in routed}),
        "generator": pipeline.generator.provenance,
        "candidates": list(OPS),
        "subsets": {
            name: summarise(rows) for name, of in SUBSETS.items() if (rows := [r for r in routed if of(r)])
        },
        "operations": {
            name: summarise([r for r in unseen if r.operation == name]) | {"split": OPS[name].split}
            for name in operations
        },
        "cases": [asdict(r) for r in routed],
    }


def report(result: Result) -> str:
    """The result as a page whose every number comes from it."""
    config = result["config"]
    lines = [
        "# Routing",
        "",
        f"{len(result['operations'])} operations on {counted(result['photographs'], 'held-out photograph')}, "
        f"{counted(config['wordings'], 'wording')} in each language, {config['steps']} sampling steps. "
        "An edit is right when, of the exact results of all operations, the one asked for is nearest by "
        "PSNR. What is not to change is not compared with the untouched source. Brackets are 95% bootstrap "
        "intervals over operations.",
        "",
        "| | edits | right | PSNR to exact, dB | over the untouched source, dB | over the frozen base, dB "
        "| below the autoencoder, dB |",
        "|---|---|---|---|---|---|---|",
    ]

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


PANELS = (
    ("English, trained words", "en", "train"),
    ("English, unseen words", "en", "held_out"),
    ("Chinese, trained words", "zh", "train"),
    ("Chinese, unseen words", "zh", "held_out"),
)


def confusion(cases: Sequence[dict], rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """(rows, columns): the share of the edits asked for a row's operation that landed on a column's."""
    matrix = np.zeros((len(rows), len(columns)))
    for case in cases:
        matrix[rows.index(case["operation"]), columns.index(case["nearest"])] += 1
    return matrix / matrix.sum(axis=1, keepdims=True).clip(1)


def figure(result: Result, path: Path) -> None:
    """A confusion matrix for each language, of trained and of unseen words, as far as they were asked."""
    rows, columns = list(result["operations"]), result["candidates"]
    asked = {
        title: cases
        for title, language, split in PANELS
        if (cases := [c for c in result["cases"] if (c["language"], c["split"]) == (language, split)])
    }
    down, across = (2, 2) if len(asked) > 2 else (1, len(asked))
    with sheet(path, 4.2 * across + 1.6, 4.8 * down + 0.8) as drawing:
        grid = drawing.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for axes, letter, (title, cases) in zip(grid.flat, "abcd", asked.items(), strict=False):
            right = [c["nearest"] == c["operation"] for c in cases]
            share = clustered_interval(right, [c["operation"] for c in cases])
            panel(axes, letter, f"{title}: {cell(share, 100, '%')} right")
            shown = axes.imshow(confusion(cases, rows, columns), cmap=AMOUNTS, vmin=0, vmax=1, aspect="auto")
            axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=4)
            axes.set_yticks(range(len(rows)), rows, fontsize=4)
            axes.tick_params(length=1)
            _mark_families(axes, rows, columns)
        drawing.supxlabel("nearest exact result")
        drawing.supylabel("operation asked for")
        drawing.colorbar(shown, ax=grid, shrink=0.4, label="share of the edits")


def _mark_families(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Thin lines where a family of operations (tone, colour, ...) ends."""
    for names, line in ((rows, axes.axhline), (columns, axes.axvline)):
        for i in range(1, len(names)):
            if OPS[names[i]].family != OPS[names[i - 1]].family:
                line(i - 0.5, color="white", linewidth=0.4, alpha=0.7)


STUDY = Study(RoutingConfig, run, report, figure)
