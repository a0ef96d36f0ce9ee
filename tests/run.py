"""The test command: `python tests/run.py`, on any machine with Python 3.10 or newer and nothing else.

It makes (or reuses) the virtual environment `.venv` in the checkout, installs the project into it with all
that its tests need, and runs ruff and pytest there. Other arguments go to pytest: `tests/run.py -k codec`.
All tests run side by side in two processes that share the processor; a choice of them runs in one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv"
OLDEST = (3, 10)
PROCESSES = 2  # that test side by side: while one waits for a server, the other computes


class SetupError(Exception):
    """The environment could not be made; the message says why and what to do."""


def parser() -> argparse.ArgumentParser:
    """The command line, without what is pytest's."""
    parse = argparse.ArgumentParser(
        prog="python tests/run.py",
        description="Set up .venv in this checkout, then check the style and run the tests in it.",
        epilog="All other arguments go to pytest: `-m gpu` runs the tests that need a GPU, and only those.",
        allow_abbrev=False,
    )
    parse.add_argument("--here", action="store_true", help="use the running interpreter; install nothing")
    parse.add_argument(
        "--torch",
        metavar="SPEC",
        default=os.environ.get("HYWU_TORCH"),
        help="install this torch first, such as torch==2.13.0 (default: $HYWU_TORCH, else pip's choice)",
    )
    return parse


def say(text: str) -> None:
    """A progress line, before the output of the step it announces."""
    print(f"== {text}", flush=True)


def run(*command: str | Path, quiet: bool = False) -> int:
    """The exit code of a command run in the checkout; nothing here ever reads the keyboard."""
    errors = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=errors).returncode


def works(python: Path) -> bool:
    """Whether an environment is there, whole, and as new as the project needs."""
    check = f"import pip, sys; sys.exit(sys.version_info < {OLDEST})"
    return python.exists() and run(python, "-c", check, quiet=True) == 0


def prepare(torch: str | None) -> Path:
    """The interpreter of `.venv`, with this checkout and what its tests need. Raises SetupError."""
    python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not works(python):
        if sys.version_info < OLDEST:
            raise SetupError(
                f"Python {'.'.join(map(str, OLDEST))} or newer is needed; this is {sys.version.split()[0]}."
            )
        say(f"make {ENVIRONMENT.name} with Python {sys.version.split()[0]}")
        try:
            venv.create(ENVIRONMENT, clear=True, symlinks=os.name != "nt", with_pip=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SetupError(
                f"{ENVIRONMENT} could not be made ({error}); on Debian, install python3-venv first."
            ) from error
    pip = (python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check")
    for what in ([torch] if torch else [], ["--editable", ".[test]"]):
        if what:
            say(f"install {what[-1]}")
            if run(*pip, *what):
                raise SetupError(f"pip could not install {what[-1]}; its message is above.")
    return python


def main() -> int:
    """Set up, check, test; exit code 2 when the set-up fails, else pytest's, or 1 if only a check failed."""
    options, for_pytest = parser().parse_known_args()
    try:
        python = Path(sys.executable) if options.here else prepare(options.torch)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    checks = {"ruff check": ("check",), "ruff format --check": ("format", "--check")}
    failed = []
    for name, arguments in checks.items():
        say(name)
        if run(python, "-m", "ruff", *arguments, "."):
            failed.append(name)
    if not for_pytest and (not options.here or find_spec("xdist")):
        for_pytest = [f"-n{PROCESSES}"]
        # More threads than processors would wait for each other.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // PROCESSES)))
    say(" ".join(["pytest", *for_pytest]))
    code = run(python, "-m", "pytest", *for_pytest)
    if failed:
        say(f"failed before the tests: {' and '.join(failed)} (see above)")
    return code or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
