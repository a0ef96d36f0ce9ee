"""What a batch of edits is made of: pictures and instructions, joined one to one, one to many or many to one.

Whatever lists and batches they came in, and of whatever sizes the pictures are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..errors import HywuError

Edits = tuple[list[list[Tensor]], list[str]]


def lines_of(prompts: Sequence[str]) -> list[str]:
    """Every line that has words as an instruction of its own; HywuError where there is none."""
    lines = [line.strip() for prompt in prompts for line in prompt.splitlines() if line.strip()]
    if not lines:
        raise HywuError("The instruction is empty; write one on each line, in words.")
    return lines


def join_edits(prompts: Sequence[str], pictures: Mapping[str, Sequence[Tensor]]) -> Edits:
    """The B edits: for each its pictures (3, H, W), in the order of their names, and its instruction.

    prompts: one, or one for each edit.  pictures: by the name of the input they came from, the first picture
    of an edit first; under each name none, one for all edits, or one for each.

    Raises HywuError for counts that do not fit, naming both, for instructions without words, and for further
    pictures where the first is missing.
    """
    given = {name: list(several) for name, several in pictures.items() if len(several)}
    first = next(iter(pictures))
    if given and first not in given:
        raise HywuError(f"{next(iter(given))} has pictures, but {first} has none; connect {first} first.")
    counts = {"prompt": len(prompts)} | {name: len(several) for name, several in given.items()}
    batch = max(counts.values())
    for name, count in counts.items():
        if count not in (1, batch):
            most = next(name for name, count in counts.items() if count == batch)
            raise HywuError(
                f"There are {_several(count, name)} and {_several(batch, most)}, which do not fit together: "
                "give one for all edits, or one for each."
            )
    for prompt in prompts:
        if not prompt.strip():
            raise HywuError("The instruction is empty; say in words what should change in the picture.")
    rows = range(batch)
    edits = [[several[row % len(several)] for several in given.values()] for row in rows]
    return edits, [prompts[row % len(prompts)] for row in rows]


def _several(count: int, name: str) -> str:
    what = "instruction" if name == "prompt" else f"picture in {name}"
    return (
        f"{count} {what}" if count == 1 else f"{count} {what.replace('ion', 'ions').replace('ure', 'ures')}"
    )
