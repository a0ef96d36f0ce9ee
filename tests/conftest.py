"""What was not tested, by name: a skip that nobody reads is a test that nobody has."""

from __future__ import annotations

from collections import Counter

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List skipped tests with their reasons; the cases of one parametrised test are counted on one line."""
    skipped: Counter[tuple[str, str]] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        if hasattr(report, "wasxfail"):
            continue
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped[reason.removeprefix("Skipped: "), report.nodeid.split("[")[0]] += 1
    if not skipped:
        return
    terminalreporter.section(f"{skipped.total()} skipped")
    for (reason, name), count in sorted(skipped.items()):
        terminalreporter.line(f"{name}{f' ({count} cases)' if count > 1 else ''}: {reason}")
