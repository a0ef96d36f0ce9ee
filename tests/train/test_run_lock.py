"""Two runs never share a folder, and a run that was killed keeps nobody out of its own."""

import signal
import subprocess
import sys
import time

import pytest

from hywu_core.train.__main__ import main
from hywu_core.train.processes import ALONE, AgreedError, Processes
from hywu_core.train.run_lock import NAME, alone

from ..commands import contents, refused

HOLD = """
import sys, time
from pathlib import Path
from hywu_core.train.processes import ALONE
from hywu_core.train.run_lock import alone

with alone(Path(sys.argv[1]), ALONE):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_in_a_folder_is_refused_before_it_prepares_anything(tmp_path, capfd):
    out = tmp_path / "run"
    with alone(out, ALONE):
        said = refused(main, "--out", out, "--set", "crops=1000000", folder=tmp_path, capfd=capfd)
        assert said.startswith(f"A run is going on in {out} (process ")
        assert said.endswith("): wait for its end, or name another folder with --out.")
        (out / "result.txt").touch()
    assert contents(tmp_path) == {"run": None, "run/result.txt": b""}
    with alone(out, ALONE):
        pass


def test_a_run_that_fails_at_once_leaves_no_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), alone(tmp_path / "runs" / "one", ALONE):
        raise KeyboardInterrupt
    assert contents(tmp_path) == {}


def test_a_killed_run_keeps_nobody_out(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(AgreedError, match=f"process {process.pid} on "), alone(out, ALONE):
        pass
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()
    assert (out / NAME).exists()
    time.sleep(0.1)
    with alone(out, ALONE):
        pass
    assert contents(out) == {}


def test_every_process_of_a_run_hears_of_it(tmp_path):
    class Second(Processes):
        def first(self, said):
            return said or "A run is going on."

    with pytest.raises(AgreedError, match="going on"), alone(tmp_path / "run", Second(1, 2)):
        pass
    assert contents(tmp_path) == {}
