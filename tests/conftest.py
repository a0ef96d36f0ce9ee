"""What was not tested, by name: a skip that nobody reads is a test that nobody has."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest


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
