"""What can be told about an adapter, or about two of them, without the model they are for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .adapter import Adapter
from .architectures import describe_backbone
from .comparison import Comparison, compare
from .norm_table import NormTable, norm_table

_STRONGEST = 5


@dataclass(frozen=True)
class Inspection:
    """The tables to draw (the adapter; with another one, that and their difference) and lines to read."""

    tables: tuple[NormTable, ...]
    lines: tuple[str, ...]


def inspect(adapter: Adapter, other: Adapter | None = None, index: int = 0) -> Inspection:
    """Look at one adapter of a batch, or at two of that index; a single LoRA goes with any index of another.

    Raises `HywuError` for an index outside the batch, and for two adapters of different models.
    """
    if other is None:
        table = _table("adapter", adapter, index)
        return Inspection((table,), tuple(_lines(adapter, table)))
    index, other_index = (0 if one.batch == 1 else index for one in (adapter, other))
    table = _table("adapter", adapter, index)
    other_table = _table("other", other, other_index)
    comparison = compare(adapter, other, index, other_index)
    lines = [*_lines(adapter, table), "", *_lines(other, other_table), "", *_verdict(table, comparison)]
    return Inspection((table, other_table, comparison.difference), tuple(lines))


def _table(name: str, adapter: Adapter, index: int) -> NormTable:
    table = norm_table(adapter, index)
    title = name if table.batch == 1 else f"{name} {table.index} of 0 to {table.batch - 1}"
    return replace(table, title=title)


def _lines(adapter: Adapter, table: NormTable) -> list[str]:
    lines = [
        f"{table.title}: {len(adapter)} targets of rank {adapter.rank}, {adapter.n_parameters:,} numbers, "
        f"for {describe_backbone(adapter)}",
        f"total norm {table.total:.4g}" + ("" if table.total else ": it changes nothing") + _parts(table),
    ]
    if table.total:
        strongest = ", ".join(f"{path} {norm:.3g}" for path, norm in table.strongest(_STRONGEST))
        lines.append(f"changed most: {strongest}")
    if broken := sum(norm is None for band in table.bands for row in band.norms for norm in row):
        lines.append(f"{broken} modules of single layers are not adapted, or their norm is not a number")
    return lines


def _parts(table: NormTable) -> str:
    """How the bands share in a total that is not zero, by their squares."""
    if len(table.bands) < 2 or not table.total:
        return ""
    shares = (f"{band.name} {(band.total / table.total) ** 2:.0%}" for band in table.bands)
    return f" (its square: {', '.join(shares)})"


def _verdict(table: NormTable, comparison: Comparison) -> list[str]:
    difference = comparison.difference.total
    relative = f", {difference / table.total:.1%} of the adapter's" if table.total else ""
    lines = [f"difference: norm {difference:.4g}{relative}"]
    if comparison.cosine is not None:
        lines.append(f"cosine of the angle between them: {comparison.cosine:.4f}")
    if comparison.only_first or comparison.only_second:
        lines.append(
            f"{comparison.only_first} targets are only in the adapter and {comparison.only_second} only in "
            "the other; they count as zero where they are not"
        )
    return lines
