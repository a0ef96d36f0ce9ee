"""What was not tested, by name: a skip that nobody reads is a test that nobody has."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of a GPU where there is none; `python tests/run.py -m gpu` runs only those."""
    if item.get_closest_marker("gpu") is not None:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("no GPU here: torch.cuda is not available")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List skipped tests under their reasons; the cases of one parametrised test share a line."""
    skipped: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for report in terminalreporter.stats.get("skipped", []):
        if hasattr(report, "wasxfail"):
            continue
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped[reason.removeprefix("Skipped: ")][report.nodeid.split("[")[0]] += 1
    if not skipped:
        return
    terminalreporter.section("skipped")
    for reason, names in sorted(skipped.items()):
        terminalreporter.line(f"{names.total()} skipped: {reason}")
        for name, cases in sorted(names.items()):
            terminalreporter.line(f"    {name}{f' ({cases} cases)' if cases > 1 else ''}")
