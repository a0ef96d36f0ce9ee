"""What all tests share: none changes the next, and what was not tested is told by name."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

SERVERS = ("tests/comfyui/", "tests/web/", "tests/test_registry.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Full depth on the newest ComfyUI there is, the essentials on the others.

    Tests marked `newest` are those that would find the same on every version; they are counted as deselected.
    """

    def install(item: pytest.Item) -> Any:
        return getattr(getattr(item, "callspec", None), "params", {}).get("install")

    versions = {i.version: i for i in map(install, items) if i is not None}
    newest = max(versions.values(), key=lambda i: [int(n) for n in i.version.split(".")], default=None)
    spared = [i for i in items if i.get_closest_marker("newest") and install(i) not in (None, newest)]
    if spared:
        config.hook.pytest_deselected(items=spared)
        left_out = set(spared)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2` one process has all that needs servers, which are costly; files are not split."""
    from xdist.scheduler import LoadScopeScheduling

    class Halves(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "servers" if nodeid.startswith(SERVERS) else nodeid.partition("::")[0]

    return Halves(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of a GPU where there is none; `python tests/run.py -m gpu` runs only those."""
    if item.get_closest_marker("gpu") is not None:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("no GPU here: torch.cuda is not available")


@pytest.fixture(autouse=True)
def as_many_threads_as_before() -> Iterator[None]:
    """A test that leaves torch with another number of threads changes the last bits of all later ones."""

    def count() -> int | None:
        torch = sys.modules.get("torch")
        return torch.get_num_threads() if torch is not None else None

    before = count()
    yield
    assert before in (None, count()), f"the test leaves {count()} threads; there were {before}"


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
