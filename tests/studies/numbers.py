"""Whether the numbers in a study's report are those of its JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# Not part of a word or a name such as "rank-8" or "op_2"; thousands may have commas.
_NUMBER = re.compile(r"(?<![\w.^-])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e-?\d+)?(?![\w^])")

_HASHES = re.compile(r"^Weights: .*$", re.MULTILINE)  # some of them look like numbers


def numbers_of(value: Any) -> Iterator[float]:
    """Every number in plain data, the lengths of its lists and mappings among them."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, (int, float)):
        yield float(value)
    elif isinstance(value, str):
        yield from (float(found.replace(",", "")) for found in _NUMBER.findall(value))
    elif isinstance(value, (dict, list)):
        yield len(value)
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str):
                yield from numbers_of(key)
            yield from numbers_of(item)


def strangers(report: str, result: Any, known: tuple[str, ...] = ()) -> list[str]:
    """The numbers in a report that no number of the result, or a hundredfold of one, rounds to.

    known: passages that are not about the result (a section of the paper, "95%").
    """
    for passage in known:
        report = report.replace(passage, "")
    report = _HASHES.sub("", report)
    values = [abs(v) for v in numbers_of(result)]
    found = []
    for text in _NUMBER.findall(report):
        plain = text.replace(",", "").lstrip("+-")
        digits = len(plain.partition("e")[0].partition(".")[2])
        shown, near = float(plain), 0.5000001 * 10**-digits
        if "e" in plain:
            near *= 10 ** int(plain.partition("e")[2])
        if not any(abs(v * factor - shown) <= near for v in values for factor in (1, 100, 1e-6)):
            found.append(text)
    return found
