"""Ctrl-C between two steps: an interrupted run stops where it can continue, never inside an update."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Hold back the first Ctrl-C (or SIGTERM) of the block; it sets the event.

    When the block ends with the event set, by whom ever, KeyboardInterrupt is raised. A second signal acts at
    once. Signals are left alone outside the main thread, where Python delivers none, and where somebody else
    has decided that they do nothing.
    """
    pending = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if not callable(before[signal.SIGINT]):
        del before[signal.SIGINT]
    if before[signal.SIGTERM] in (signal.SIG_IGN, None):
        del before[signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        before.clear()

    def hold(number: int, frame: object) -> None:
        pending.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, hold)
    try:
        yield pending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if pending.is_set():
        raise KeyboardInterrupt
