"""LoRAs that a generator wrote, given to inputs that they were not written for (paper 5.3).

Shapes: N cases, r rank.

All of them keep the generator and its way of acting, and lose the alignment of LoRA and input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..conditions import Condition
from ..lora import Adapter
from ..lora.algebra import average, combine, square_norms
from ..train.world import EditCase
from .lab import Write


def derangement(labels: Sequence[str], generator: torch.Generator) -> list[int]:
    """A random permutation that gives every place the number of a place with another label.

    Sorted by label (labels, and places of one label, in random order) and turned by as many places as the
    most frequent label has, no label meets itself. AssertionError where a label has more than half of the
    places: there is no such permutation.
    """
    names = sorted(set(labels))
    order = torch.randperm(len(names), generator=generator).tolist()
    rank = {names[i]: place for place, i in enumerate(order)}
    mixed = torch.randperm(len(labels), generator=generator).tolist()
    ordered = sorted(mixed, key=lambda place: rank[labels[place]])
    turn = max(list(labels).count(name) for name in names)
    assert 2 * turn <= len(labels), f"one label has {turn} of {len(labels)} places"
    donors = [0] * len(labels)
    for place, donor in zip(ordered, ordered[turn:] + ordered[:turn], strict=True):
        donors[place] = donor
    return donors


def others_of_a_kind(kinds: Sequence[str], values: Sequence[int]) -> list[list[int]]:
    """For every place, the places of the same kind with another value, in turn from it on.

    AssertionError for a kind with one value only.
    """
    n = len(kinds)
    found = []
    for place in range(n):
        turned = [(place + step) % n for step in range(1, n)]
        found.append([i for i in turned if kinds[i] == kinds[place] and values[i] != values[place]])
        assert found[-1], f"all places of {kinds[place]!r} have the same value"
    return found


def given(cases: Sequence[EditCase], adapter: Adapter) -> Write:
    """Case i gets adapter i of a batch of N, or all the only one."""
    places = {id(case): place for place, case in enumerate(cases)}

    def write(some: Sequence[EditCase], _: Condition) -> Adapter:
        return adapter if adapter.batch == 1 else adapter.select([places[id(case)] for case in some])

    return write


def mean_factors(adapter: Adapter) -> Adapter:
    """The means of A and of B over a batch: what an average is if one forgets that a LoRA acts as B A."""
    return Adapter(
        {name: (A.mean(0, keepdim=True), B.mean(0, keepdim=True)) for name, (A, B) in adapter.items()},
        adapter.scale,
    )


def means_of_others(adapter: Adapter, others: Sequence[Sequence[int]]) -> Adapter:
    """For each of a batch of N, the exact mean update of some others, as many for each."""
    return Adapter.stack([average(adapter.select(rows)) for rows in others])


def without_mean(adapter: Adapter) -> Adapter:
    """Each update less the mean of the batch: only what tells the inputs apart."""
    return combine([adapter, average(adapter)], [1.0, -1.0])


def energy(adapter: Adapter, kinds: Sequence[str]) -> dict[str, float]:
    """Shares of the mean squared norm of a batch's updates, which add up to 1.

    common: of the mean of all.  kind: of the differences between the means of kinds.  instance: the rest.
    """
    places = [[i for i, kind in enumerate(kinds) if kind == name] for name in sorted(set(kinds))]
    whole = float(_power(adapter).mean())
    common = float(_power(average(adapter))) / whole
    of_kinds = sum(len(rows) * float(_power(average(adapter.select(rows)))) for rows in places) / len(kinds)
    return {"common": common, "kind": of_kinds / whole - common, "instance": 1 - of_kinds / whole}


def _power(adapter: Adapter) -> torch.Tensor:
    """Squared Frobenius norm of each whole update (N,)."""
    return torch.stack(list(square_norms(adapter).values())).sum(0)
