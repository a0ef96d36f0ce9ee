"""The pairing report: what is in a data set and what is wrong with it, as a table and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from .buckets import Buckets
from .collect import Findings
from .dataset import PairedDataset
from .scan import Scan

_BAR = 30  # characters
_SHOWN = 5  # examples and sizes of each kind
_SHAPES = (
    "1:4",
    "1:3",
    "1:2",
    "9:16",
    "2:3",
    "3:4",
    "4:5",
    "1:1",
    "5:4",
    "4:3",
    "3:2",
    "16:9",
    "2:1",
    "3:1",
    "4:1",
)


@dataclass(frozen=True)
class Problem:
    """One kind of thing that is wrong, or only odd."""

    kind: str
    error: bool  # training cannot go on; otherwise it can, but the user should know
    what: str
    found: Findings


@dataclass(frozen=True)
class Report:
    """Everything about a data set that can be said before a model loads."""

    convention: str
    path: str
    samples: int
    samples_per_epoch: int  # with repeats
    controls: dict[int, int]  # samples by number of controls
    caption_length: float  # median, in characters
    phrasings: int  # captions beyond one per sample
    targets: dict[tuple[int, int], int]  # by (width, height), the commonest first
    control_sizes: dict[tuple[int, int], int]
    buckets: dict[tuple[int, int], int]  # by (height, width)
    layouts: dict[tuple[tuple[int, int], int], int]  # by bucket and number of controls; with repeats
    problems: tuple[Problem, ...]
    notes: dict[str, int]
    memory: int  # bytes of the list of samples

    @property
    def errors(self) -> list[Problem]:
        """What must be put right before training."""
        return [problem for problem in self.problems if problem.error and problem.found.count]

    def sentence(self) -> str:
        """All errors in one sentence, with what to do; empty if there are none."""
        said = [f"{p.what}: {p.found.count} (such as {p.found.examples[0]})" for p in self.errors]
        if not said:
            return ""
        allowed = any(problem.kind == "missing_controls" for problem in self.errors)
        advice = ", or allow missing controls with --allow-missing-controls" if allowed else ""
        return f"{self.path} cannot be trained on: {'; '.join(said)}. Put these right{advice}."

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "convention": self.convention,
            "path": self.path,
            "samples": self.samples,
            "samples_per_epoch": self.samples_per_epoch,
            "samples_by_number_of_controls": {str(count): n for count, n in self.controls.items()},
            "median_caption_length": self.caption_length,
            "additional_phrasings": self.phrasings,
            "target_sizes": _sizes_to_list(self.targets),
            "control_sizes": _sizes_to_list(self.control_sizes),
            "target_shapes": shapes(self.targets),
            "buckets": [{"height": h, "width": w, "samples": n} for (h, w), n in self.buckets.items()],
            "layouts": [
                {"height": h, "width": w, "controls": count, "samples_per_epoch": n}
                for ((h, w), count), n in self.layouts.items()
            ],
            "problems": {
                p.kind: {"error": p.error, "count": p.found.count, "examples": p.found.examples}
                for p in self.problems
            },
            "notes": self.notes,
            "manifest_bytes": self.memory,
            "usable": not self.errors,
        }

    def to_text(self) -> str:
        """A table to read."""
        per_epoch = f", {self.samples_per_epoch:,} in an epoch" * (self.samples_per_epoch != self.samples)
        controls = ", ".join(f"{n:,} with {count}" for count, n in self.controls.items())
        more = f", {self.phrasings:,} further phrasings" * bool(self.phrasings)
        lines = [
            f"{self.path} ({self.convention})",
            *_table(
                [
                    ("samples", f"{self.samples:,}{per_epoch}"),
                    ("control images", controls or "none"),
                    ("captions", f"median length {self.caption_length:g} characters{more}"),
                ]
            ),
            *_problems("errors", [p for p in self.problems if p.error]),
            *_problems("warnings", [p for p in self.problems if not p.error]),
        ]
        if self.notes:
            lines += ["", "notes", *_table([(f"{count:,}", text) for text, count in self.notes.items()])]
        lines += _histogram("target sizes (width x height)", _named(self.targets))
        lines += _histogram("control sizes (width x height)", _named(self.control_sizes))
        lines += _histogram("target shapes (width : height)", shapes(self.targets), most=len(_SHAPES))
        lines += _histogram(
            "buckets (width x height)", {f"{w} x {h}": n for (h, w), n in self.buckets.items()}
        )
        lines += _histogram(
            "layouts: what a batch is made of (samples in an epoch)",
            {
                f"{w} x {h}, {count} control{'s' * (count != 1)}": n
                for ((h, w), count), n in self.layouts.items()
            },
            most=4 * _SHOWN,
        )
        return "\n".join(lines)


def make_report(data: PairedDataset, seen: Scan, buckets: Buckets, allow_missing_controls: bool) -> Report:
    """Put together what reading and scanning a data set found."""
    samples = data.samples
    empty, phrasings, lengths = Findings(), 0, []
    for sample in samples:
        lengths.append(len(sample.prompt))
        phrasings += len(sample.also)
        if not sample.prompt:
            empty.add(str(sample.target))
    counts = Counter(samples.count_controls(index) for index in range(len(samples)))
    variable = Findings()
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        for index in range(len(samples)):
            if (count := samples.count_controls(index)) != usual:
                variable.add(f"{samples[index].target}: {count}, most have {usual}")
    in_buckets: Counter[tuple[int, int]] = Counter()
    for size, number in seen.targets.items():
        in_buckets[buckets.size(*size)] += number
    layouts: Counter[tuple[tuple[int, int], int]] = Counter()
    for (target, *controls), number in seen.samples.items():
        layouts[buckets.size(*target), len(controls)] += number
    return Report(
        convention=data.convention,
        path=str(data.path),
        samples=len(samples),
        samples_per_epoch=sum(samples.repeats),
        controls=dict(sorted(counts.items())),
        caption_length=median(lengths) if lengths else 0,
        phrasings=phrasings,
        targets=dict(seen.targets.most_common()),
        control_sizes=dict(seen.controls.most_common()),
        buckets=dict(in_buckets.most_common()),
        layouts=dict(layouts.most_common()),
        problems=(
            Problem("missing_targets", True, "missing edited images", samples.missing_targets),
            Problem(
                "missing_controls",
                not allow_missing_controls,
                "samples lacking a control image",
                samples.missing_controls,
            ),
            Problem("unreadable", True, "unreadable images", seen.unreadable),
            Problem("identical", False, "samples whose target is their own control", seen.identical),
            Problem("alike", False, "samples with a control that hardly differs from the target", seen.alike),
            Problem("duplicates", False, "samples that are copies of others", seen.duplicates),
            Problem("same_targets", False, "targets that other samples have, too", seen.same_targets),
            Problem("orphans", False, "control images of no target", samples.orphans),
            Problem("empty_captions", False, "samples without a caption", empty),
            Problem("variable_controls", False, "samples with another number of controls", variable),
        ),
        notes=dict(samples.notes),
        memory=samples.nbytes,
    )


def shapes(sizes: dict[tuple[int, int], int]) -> dict[str, int]:
    """How many images are nearest to each usual shape."""
    counts = dict.fromkeys(_SHAPES, 0)
    for (width, height), number in sizes.items():
        nearest = min(_SHAPES, key=lambda shape: _distance(shape, width / height))
        counts[nearest] += number
    return {shape: number for shape, number in counts.items() if number}


def _distance(shape: str, ratio: float) -> float:
    width, height = map(int, shape.split(":"))
    return max(ratio * height / width, width / (ratio * height))


def _sizes_to_list(sizes: dict[tuple[int, int], int]) -> list[dict[str, int]]:
    return [{"width": width, "height": height, "images": n} for (width, height), n in sizes.items()]


def _named(sizes: dict[tuple[int, int], int]) -> dict[str, int]:
    return {f"{width} x {height}": number for (width, height), number in sizes.items()}


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {text}" for name, text in rows]


def _problems(title: str, problems: Iterable[Problem]) -> list[str]:
    there = [problem for problem in problems if problem.found.count]
    if not there:
        return ["", f"{title}: none"]
    lines = ["", title]
    for problem in there:
        lines.append(f"  {problem.what}: {problem.found.count:,}")
        lines += [f"      {example}" for example in problem.found.examples[:_SHOWN]]
        if problem.found.count > _SHOWN:
            lines.append(f"      ... and {problem.found.count - _SHOWN:,} more")
    return lines


def _histogram(title: str, counts: dict[str, int], most: int = 2 * _SHOWN) -> list[str]:
    if not counts:
        return []
    shown = dict(list(counts.items())[:most])
    if len(counts) > most:
        rest = list(counts.values())[most:]
        shown[f"{len(rest):,} others"] = sum(rest)
    largest = max(shown.values())
    width, digits = max(map(len, shown)), len(f"{largest:,}")
    return [
        "",
        title,
        *(
            f"  {name:<{width}}  {number:>{digits},}  {'#' * max(1, round(_BAR * number / largest))}"
            for name, number in shown.items()
        ),
    ]
