"""What people do with two adapters, by name: mix, add, average, scale, join."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten

from ..errors import HywuError
from .adapter import Adapter
from .algebra import average, combine, interpolate, join, truncate_rank
from .header import OF_THE_ROW

OPERATIONS = ("interpolate", "add", "average", "scale", "batch")
_NEED_TWO = {"interpolate", "add", "batch"}
_BY_AMOUNT = {"interpolate", "add", "scale"}
_LONGEST = 1000  # characters of what is told: it can double with every step


def combine_adapters(
    operation: str, a: Adapter, b: Adapter | None = None, amount: float = 0.5, max_rank: int = 0
) -> tuple[Adapter, list[str]]:
    """The result of one of `OPERATIONS`, and what to tell the user about it, a line each.

    interpolate: (1 - amount) a + amount b.  add: a + amount b.  average: the mean over all LoRAs of a and b,
    each of them counting once.  scale: amount a.  batch: the LoRAs of a, then those of b.
    max_rank: 0 for the exact result, else the nearest one of at most this rank.

    Updates are meant, B A and not its factors; a target that only one has counts as zero in the other.
    The provenance says what was done (`combined`). Only a batch's LoRAs are still their conditions' own.
    Raises `HywuError` for a missing b, an unknown operation, and what `algebra.combine` refuses.
    """
    if operation not in OPERATIONS:
        raise HywuError(f"Unknown operation {operation!r}; choose one of {', '.join(OPERATIONS)}.")
    if b is None and operation in _NEED_TWO:
        raise HywuError(f"The operation {operation!r} needs two adapters; connect the second one.")
    if max_rank < 0:
        raise HywuError(f"The rank bound is {max_rank}; it must be 0 (no bound) or positive.")
    rank = max_rank or None
    used = [a] if b is None or operation == "scale" else [a, b]
    if operation == "interpolate":
        result = interpolate(a, b, amount, rank)
    elif operation == "add":
        result = combine([a, b], [1.0, amount], rank)
    elif operation == "average":
        number = sum(adapter.batch for adapter in used)
        result = combine([average(x) for x in used], [x.batch / number for x in used], rank)
    else:
        result = a.scaled(amount) if operation == "scale" else join(used)
        if rank is not None and rank < result.rank:
            result = truncate_rank(result, rank)
    report = _report(operation, used, result)
    done = f"{operation} {amount:g}" if operation in _BY_AMOUNT else operation
    done += f", max_rank {max_rank}" if max_rank else ""
    return _told(result, done, used, own_conditions=operation == "batch"), report


def _told(result: Adapter, done: str, used: list[Adapter], own_conditions: bool) -> Adapter:
    """The result with what was done in its provenance, after what had been done before."""
    before = [adapter.provenance.get("combined") for adapter in used]
    if done == "batch" and len(set(before)) == 1:  # as they were
        return result
    if any(before):
        done += " of " + " and ".join(f"({words or 'one as it was'})" for words in before)
    rows, provenance = result.rows, dict(result.provenance)
    if not own_conditions:
        rows, provenance = [_without_condition(row) for row in rows], _without_condition(provenance)
    told = {**provenance, "combined": shorten(done, _LONGEST, placeholder=" ...")}
    return Adapter(result, result.scale, told, rows if any(rows) else ())


def _without_condition(told: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in told.items() if key not in OF_THE_ROW}


def _report(operation: str, used: list[Adapter], result: Adapter) -> list[str]:
    ranks = " and ".join(str(adapter.rank) for adapter in used)
    lines = [f"{operation}: {result.batch} of rank {result.rank}, from rank {ranks}"]
    if len(used) == 2:
        a, b = used
        if only := len(a.keys() ^ b.keys()):
            lines.append(f"{only} of {len(result)} targets are in only one of them; the other counts as zero")
        bases = [x.provenance.get("base") for x in used]
        if None not in bases and bases[0] != bases[1]:
            lines.append(f"made for different backbones: {bases[0]} and {bases[1]}")
    return lines
