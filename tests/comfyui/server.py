"""A real ComfyUI under test: on loopback, in a base directory of its own, gone at the end.

The server reads the ComfyUI tree and never writes to it: models, inputs, outputs, user data, its database and
a copy of this pack all live in a temporary base directory.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

PACK = Path(__file__).resolve().parents[2]
PACK_NAME = "ComfyUI-HYWU"
PACK_PARTS = ("__init__.py", "nodes", "hywu_core", "web", "workflows", "locales", "pyproject.toml")
DEFAULT_TREES = ("ComfyUI", "ComfyUI-0.8", "ComfyUI-0.3.64")  # in ~/comfy, the newest first
START_SECONDS = 300
RUN_SECONDS = 300

_loopback = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Install:
    """One ComfyUI tree and the interpreter that runs it."""

    root: Path
    python: Path

    @property
    def version(self) -> str:
        """The tree's own version, such as 0.33.0."""
        text = (self.root / "comfyui_version.py").read_text(encoding="utf-8")
        return re.search(r'__version__\s*=\s*"([^"]+)"', text)[1]

    def at_least(self, version: str) -> bool:
        """Whether it is this version or a newer one."""
        return version_numbers(self.version) >= version_numbers(version)


def version_numbers(version: str) -> tuple[int, ...]:
    """0.33.0 as something to compare."""
    return tuple(int(number) for number in version.split("."))


def find_installs() -> tuple[list[Install], str]:
    """Every ComfyUI named by COMFYUI_PATH (or at the default places), and what is missing."""
    named = os.environ.get("COMFYUI_PATH")
    home = Path.home() / "comfy"
    roots = (
        [Path(p) for p in named.split(os.pathsep) if p] if named else [home / name for name in DEFAULT_TREES]
    )
    installs = [Install(root.resolve(), _interpreter(root)) for root in roots if (root / "main.py").is_file()]
    missing = [str(root / "main.py") for root in roots if not (root / "main.py").is_file()]
    return (
        installs,
        f"no ComfyUI here: {' and '.join(missing)} not found; set COMFYUI_PATH" if missing else "",
    )


def _interpreter(root: Path) -> Path:
    if named := os.environ.get("COMFYUI_PYTHON"):
        return Path(named)
    own = root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return own if own.exists() else Path(sys.executable)


class Refused(Exception):
    """The server did not accept a graph, or a node in it failed; the message holds its own words."""

    def __init__(self, message: str, node: str | None = None) -> None:
        super().__init__(message)
        self.node = node


class ComfyServer:
    """A running server: queue graphs in API format, wait for them, fetch their pictures and node reports."""

    def __init__(self, install: Install, base: Path, arguments: tuple[str, ...] = ("--cpu",)) -> None:
        self.install = install
        self.base = base
        self.arguments = arguments
        self.port = _free_port()
        self.log_path = base / "server.log"
        self._process: subprocess.Popen | None = None
        self._log_mark = 0
        self._messages: list[tuple[str, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.port}"

    def folder(self, *parts: str) -> Path:
        """A folder of the base directory (`models`, `loras` ...), made if it is not there."""
        path = self.base.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def pack(self) -> Path:
        """Where the copy of this pack stands."""
        return self.base / "custom_nodes" / PACK_NAME

    def install_pack(self) -> None:
        """Copy the pack into the base directory (a link would not do on Windows)."""
        self.pack.mkdir(parents=True)
        for part in PACK_PARTS:
            if (source := PACK / part).is_dir():
                shutil.copytree(source, self.pack / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, self.pack / part)

    def start(self) -> None:
        """Start the process and wait until it answers; its log is in the error if it does not."""
        for name in ("input", "output", "temp"):
            self.folder(name)
        # Without the first start's dialog and the map, which lie over the graph.
        settings = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
        (self.folder("user", "default") / "comfy.settings.json").write_text(json.dumps(settings))
        command = [
            str(self.install.python),
            "-B",
            "main.py",
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        command += ["--base-directory", str(self.base), "--disable-auto-launch", "--disable-api-nodes"]
        command += [
            "--database-url",
            f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}",
            *self.arguments,
        ]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.install.root, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"ComfyUI {self.install.version} did not start:\n{self.log()[-6000:]}")
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.25)

    def stop(self) -> None:
        """End the process; safe to call twice."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """Everything the server has printed."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def mark_log(self) -> None:
        """`recent_log` begins here."""
        self._log_mark = len(self.log())

    def recent_log(self) -> str:
        """What was printed since `mark_log`."""
        return self.log()[self._log_mark :]

    def wait_for_log(self, pattern: str, seconds: float = 60) -> None:
        """Until what the server has printed since `mark_log` matches a regular expression."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.recent_log()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"ComfyUI did not print {pattern!r} in {seconds} s")
            time.sleep(0.05)

    def get(self, path: str) -> Any:
        """GET a path and parse its JSON."""
        with _loopback.open(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())

    def get_bytes(self, path: str) -> bytes:
        """GET a path as it is."""
        with _loopback.open(self.url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST JSON; `Refused` with the server's answer on an error status."""
        request = urllib.request.Request(
            self.url + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        try:
            with _loopback.open(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from error
        return json.loads(text) if text else None

    def put_image(self, name: str, picture: Image.Image) -> str:
        """Place a picture in the input folder, for Load Image."""
        picture.save(self.folder("input") / name)
        return name

    def run(self, graph: Graph) -> dict[str, Any]:
        """Queue a graph and wait; what its nodes reported, by node id. `Refused` if one failed."""
        return self.wait(self.queue(graph))

    def queue(self, graph: Graph) -> str:
        """Queue a graph in API format; its prompt id. `Refused` if it does not validate."""
        return self.post("/prompt", {"prompt": graph, "client_id": uuid.uuid4().hex})["prompt_id"]

    def wait(self, prompt_id: str) -> dict[str, Any]:
        """As `run`, for a graph that is queued already."""
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                break
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError("ComfyUI died while it ran a graph")
            time.sleep(0.05)
        else:
            raise TimeoutError(f"ComfyUI did not finish a graph in {RUN_SECONDS} s")
        if entry["status"]["status_str"] != "success":
            failures = [m for kind, m in entry["status"]["messages"] if kind == "execution_error"]
            message = failures[0] if failures else {"exception_message": str(entry["status"])}
            raise Refused(message["exception_message"].strip(), message.get("node_id"))
        self._messages = entry["status"]["messages"]
        return entry["outputs"]

    def cached(self) -> set[str]:
        """The nodes that did not run in the graph that was waited for last: what they made was there."""
        return {node for kind, m in self._messages if kind == "execution_cached" for node in m["nodes"]}

    def picture(self, outputs: dict[str, Any], node: str, index: int = 0) -> Image.Image:
        """A picture that a Save Image or Preview Image node made in a run."""
        query = urllib.parse.urlencode(outputs[node]["images"][index])
        return Image.open(io.BytesIO(self.get_bytes(f"/view?{query}"))).convert("RGB")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
