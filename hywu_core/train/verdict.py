"""What a run on the embedded backbone reached over the frozen base: a picture, and a sentence in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ..images import save_sheet
from .world import Judged, mean_untouched

NAMES = {
    "hywu": "HY-WU",
    "shared_lora": "one shared LoRA",
    "single_lora": "a LoRA for each operation",
    "sft": "the fine-tuned backbone",
}


def save_before_after(
    adaptation: str, edited: Sequence[Judged], frozen: Sequence[Judged], path: Path
) -> None:
    """The edits of the first held-out photograph, beside those of the frozen base and the exact results."""
    rows = [
        (f"{e.case.prompt}   ({NAMES[adaptation]} {e.score:.1f} dB, frozen base {f.score:.1f} dB)",
         (e.case.source, f.result, e.result, e.case.target))
        for e, f in zip(edited, frozen, strict=True)
        if e.case.photo == 0
    ]  # fmt: skip
    save_sheet(rows, ("photograph", "frozen base", NAMES[adaptation], "exact result"), path)


def sentence(adaptation: str, edited: Sequence[Judged], frozen: Sequence[Judged]) -> str:
    """What improved over the frozen base on held-out photographs, in dB."""
    reached, base = fmean([j.score for j in edited]), fmean([j.score for j in frozen])
    n_photos = len({j.case.photo for j in edited})
    photographs = "one held-out photograph" if n_photos == 1 else f"{n_photos} held-out photographs"
    operations = len({j.case.operation for j in edited})
    return (
        f"On {photographs} and {operations} operations, {NAMES[adaptation]} reaches "
        f"{reached:.2f} dB of PSNR to the exact result on average; the frozen base alone reaches {base:.2f} "
        f"dB and the untouched photographs {mean_untouched(edited):.2f} dB: {reached - base:+.2f} dB over "
        "the frozen base."
    )
