"""Ctrl-C between two steps: an interrupted run stops where it can continue, never inside an update."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Hold back the first Ctrl-C of the block; it sets the event and is raised when the block ends.

    A second Ctrl-C interrupts at once. Without effect outside the main thread, where Python delivers no
    signals, and where somebody else has decided that Ctrl-C does nothing.
    """
    pending = threading.Event()
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield pending
        return

    def hold(signum: int, frame: object) -> None:
        pending.set()
        signal.signal(signal.SIGINT, handler)

    signal.signal(signal.SIGINT, hold)
    try:
        yield pending
    finally:
        signal.signal(signal.SIGINT, handler)
    if pending.is_set():
        raise KeyboardInterrupt
