"""What all tests share: none changes the next, and what was not tested is told by name."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

SERVERS = ("tests/comfyui/", "tests/web/", "tests/test_registry.py")
LONGEST = (*SERVERS, "tests/train/", "tests/studies/")


def pytest_configure(config: pytest.Config) -> None:
    """No test fails because the machine is busy: hypothesis has no deadlines, as where CI is set."""
    try:
        from hypothesis import HealthCheck, settings
    except ImportError:  # the registry's job has pytest alone
        return
    settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Full depth on the newest ComfyUI there is, the essentials on the others.

    Tests marked `newest` are those that would find the same on every version; they are counted as deselected,
    by each process where there are several, which do not tell. The longest files come first.
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
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2` one process has all that needs servers, which are costly; files are not split."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # by the number of tests, that is; a few take long

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
def as_if_it_were_the_first() -> Iterator[None]:
    """Torch's random numbers are those of a fresh process, and its threads stay as many as they were.

    Another number of them changes the last bits of all later tests.
    """

    def count() -> int | None:
        torch = sys.modules.get("torch")
        return torch.get_num_threads() if torch is not None else None

    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
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
