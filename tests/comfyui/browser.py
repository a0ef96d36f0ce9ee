"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import websocket

START_SECONDS = 60
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")


def find_chromium() -> str | None:
    """The browser named by CHROMIUM_PATH, or one on the search path."""
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, _NAMES)), None)


class PageError(Exception):
    """A script in the page threw."""


class Browser:
    """One page of a headless browser with a profile of its own; a context manager."""

    def __init__(self, executable: str, profile: Path, size: tuple[int, int] = (1720, 1000)) -> None:
        self.console: list[str] = []
        self._sent = 0
        arguments = [
            executable,
            "--headless=new",
            "--no-sandbox",  # containers run as root, and only the test server's pages are opened
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
            "about:blank",
        ]
        self._log = (profile.parent / f"{profile.name}.log").open("wb")
        self._process = subprocess.Popen(arguments, stdout=self._log, stderr=self._log)
        try:
            self._socket = self._connect(profile / "DevToolsActivePort")
            for domain in ("Page", "Runtime", "Log"):
                self._call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def open(self, url: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The JSON value of an expression, awaited; PageError if it throws."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 60) -> Any:
        """Evaluate until the value is truthy, and return it."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if value := self.evaluate(script):
                    return value
            except PageError as error:  # what it asks for is not there yet
                last = str(error)
            else:
                last = "it was never true"
            if time.monotonic() > deadline:
                raise TimeoutError(f"{script!r} after {seconds} s: {last}\n" + "\n".join(self.console[-20:]))
            time.sleep(0.2)

    def before_every_page(self, script: str) -> None:
        """Run a script in every page from now on, before the page's own."""
        self._call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def point(self, x: float, y: float) -> None:
        """Move the mouse there, in pixels of the window."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        """Press and release the left button there."""
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press and release a key, by its name: "ArrowLeft", "Tab"."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def prefer(self, scheme: str) -> None:
        """Ask pages for a "light" or a "dark" look."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def wheel(self, x: float, y: float, distance: float) -> None:
        """Turn the wheel there; a negative distance is away from the user."""
        self._call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=distance)

    def screenshot(self, path: Path) -> Path:
        """Save what the page looks like as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))
        return path

    def _connect(self, port_file: Path) -> websocket.WebSocket:
        deadline = time.monotonic() + START_SECONDS
        while (page := self._first_page(port_file)) is None:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"the browser did not start: {Path(self._log.name).read_text()[-2000:]}")
            time.sleep(0.1)
        return websocket.create_connection(
            page["webSocketDebuggerUrl"], timeout=120, suppress_origin=True, http_no_proxy=["127.0.0.1"]
        )

    @staticmethod
    def _first_page(port_file: Path) -> dict[str, Any] | None:
        """The page that a browser opens with; None while it starts, which it does bit by bit."""
        if not port_file.exists() or not (lines := port_file.read_text().splitlines()):
            return None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{lines[0]}/json/list", timeout=10) as answer:
                targets = json.loads(answer.read())
        except OSError:
            return None
        return next((target for target in targets if target["type"] == "page"), None)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._sent += 1
        number = self._sent
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        """Keep what the page reports as errors; leave it when it asks whether to."""
        if "method" not in event:  # the answer to the last lines below
            return
        if event["method"] == "Runtime.exceptionThrown":
            details = event["params"]["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description") or details["text"])
        elif event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] == "error":
            arguments = event["params"]["args"]
            self.console.append(" ".join(str(a.get("value", a.get("description"))) for a in arguments))
        elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            entry = event["params"]["entry"]
            self.console.append(f"{entry['text']} {entry.get('url', '')}")
        elif event["method"] == "Page.javascriptDialogOpening":
            self._sent += 1
            answer = {"method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self._socket.send(json.dumps({"id": self._sent} | answer))
