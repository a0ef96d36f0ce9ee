import signal

import pytest

from .edited_photos import write_edits


@pytest.fixture(autouse=True)
def ctrl_c_works():
    """Shells start background jobs, and what those start, deaf to Ctrl-C; a terminal's programs hear it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def good(tmp_path):
    """A data set with nothing wrong."""
    return write_edits(tmp_path / "set")
