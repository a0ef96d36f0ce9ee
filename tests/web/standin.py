"""A stand-in for ComfyUI's server: the real interface, our web folder, answers recorded from a real server.

It answers what the page asks as 0.33.0 did when `record` asked it, and plays the messages of one run of the
quickstart back to whoever queues a graph. It computes nothing.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import threading
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from PIL import Image

from ..comfyui.server import PACK, PACK_NAME

RECORDED = Path(__file__).with_name("recorded")
START_SECONDS = 30
NO_JOBS = {"jobs": [], "pagination": {"offset": 0, "limit": 200, "total": 0, "has_more": False}}
# ComfyUI's own with --disable-api-nodes: the page asks nobody else.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data:;"
)

Message = dict[str, Any]


def find_interface() -> Path | None:
    """The files of `comfyui-frontend-package`, if it is installed."""
    spec = importlib.util.find_spec("comfyui_frontend_package")
    return Path(spec.origin).with_name("static") if spec and spec.origin else None


class StandIn:
    """Serves on loopback from a thread of its own; a context manager.

    prompts: what was queued. pause_before: the kind of message before which a run waits for `go_on`.
    silent: nodes whose outputs it does not send.
    """

    def __init__(self, interface: Path) -> None:
        self.interface = interface
        self.prompts: list[dict[str, Any]] = []
        self.pause_before: str | None = None
        self.silent: set[str] = set()
        self.url = ""
        self._answers: dict[str, Any] = _read("answers.json")
        self._run: list[Message] = _read("run.json")
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._playing: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._may_go_on = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> StandIn:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def go_on(self) -> None:
        """Play the rest of the run that waits."""
        self._loop.call_soon_threadsafe(self._may_go_on.set)

    async def _start(self) -> None:
        app = web.Application()
        app.on_response_prepare.append(_keep_to_itself)
        app.add_routes(
            [
                web.get("/ws", self._listen),
                web.post("/api/prompt", self._queue),
                web.get("/api/view", self._picture),
                web.get("/api/jobs", self._jobs),
                web.get("/api/extensions", self._extensions),
                web.get("/api/workflow_templates/{pack}/{file}", self._template),
                web.static(f"/extensions/{PACK_NAME}", PACK / "web"),
                web.get("/api/{path:.*}", self._answer),
                web.post("/api/settings/{id}", self._set),
                web.post("/api/{path:.*}", self._accept),
                web.get("/", self._index),
                web.static("/", self.interface),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _listen(self, request: web.Request) -> web.WebSocketResponse:
        """The page's line for messages; it says hello and is told that nothing is queued."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sid = request.query.get("clientId") or "recorded"
        self._sockets[sid] = socket
        status = {"exec_info": {"queue_remaining": 0}}
        await socket.send_json({"type": "status", "data": {"status": status, "sid": sid}})
        async for message in socket:
            if message.type is WSMsgType.ERROR:
                break
        return socket

    async def _queue(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.prompts.append(body["prompt"])
        task = asyncio.create_task(self._play(self._sockets[body["client_id"]]))
        self._playing.add(task)
        task.add_done_callback(self._playing.discard)
        prompt_id = next(m["data"]["prompt_id"] for m in self._run if m["type"] == "execution_start")
        return web.json_response({"prompt_id": prompt_id, "number": 1, "node_errors": {}})

    async def _play(self, socket: web.WebSocketResponse) -> None:
        self._may_go_on.clear()
        waited = False
        for message in self._run:
            if message["type"] == "executed" and message["data"]["node"] in self.silent:
                continue
            if message["type"] == self.pause_before and not waited:
                await self._may_go_on.wait()
                waited = True
            await socket.send_json(message)

    async def _answer(self, request: web.Request) -> web.Response:
        """What was recorded for this address; ComfyUI has no such thing where nothing was."""
        path = request.path_qs.removeprefix("/api")
        if path not in self._answers:
            return web.json_response({}, status=404)
        return web.json_response(self._answers[path])

    async def _index(self, _: web.Request) -> web.FileResponse:
        return web.FileResponse(self.interface / "index.html")

    async def _jobs(self, _: web.Request) -> web.Response:
        return web.json_response(NO_JOBS)

    async def _set(self, request: web.Request) -> web.Response:
        """A setting outlives the page."""
        self._answers["/settings"][request.match_info["id"]] = await request.json()
        return web.Response()

    async def _accept(self, _: web.Request) -> web.Response:
        return web.json_response({})

    async def _picture(self, _: web.Request) -> web.Response:
        """Any picture: a grey one."""
        data = io.BytesIO()
        Image.new("RGB", (96, 64), (90, 110, 130)).save(data, "PNG")
        return web.Response(body=data.getvalue(), content_type="image/png")

    async def _extensions(self, _: web.Request) -> web.Response:
        """As ComfyUI lists them: every script in the web folder."""
        scripts = sorted((PACK / "web").rglob("*.js"))
        names = [path.relative_to(PACK / "web").as_posix() for path in scripts]
        return web.json_response([f"/extensions/{PACK_NAME}/{name}" for name in names])

    async def _template(self, request: web.Request) -> web.StreamResponse:
        path = PACK / "workflows" / Path(request.match_info["file"]).name
        return web.FileResponse(path) if path.exists() else web.json_response({}, status=404)


async def _keep_to_itself(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Content-Security-Policy"] = POLICY


def _read(name: str) -> Any:
    return json.loads((RECORDED / name).read_text(encoding="utf-8"))
