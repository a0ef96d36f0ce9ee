"""What every command of the library shares: one sentence and exit code 2 for bad input."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable

from .errors import HywuError


def command(main: Callable[[], int]) -> int:
    """Run a command's `main`; a HywuError or a full disk becomes one sentence on stderr and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return main()
    except HywuError as error:
        sentence = str(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sentence = f"The disk is full: {error.filename or error}."
    print(f"error: {sentence}", file=sys.stderr)  # noqa: T201
    return 2
