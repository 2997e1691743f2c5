"""The HTTP API as a server: it takes its port, serves inside the daemon's loop, and leaves in order.

Decides the order of the start (`start` takes the port before anything is announced, and may raise StartError or
ConfigError) and of the end (`stop`: event streams end at once, nothing new is begun, what is generated gets the
grace, and what is left then is told so). uvicorn installs no signal handler here. The routes are in
`http_routes.py` and `http_generation.py`. `app.py` calls `start`, `run` in a task, then `stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exod.daemon_api.interface import DaemonCommands
from exod.errors import RequestError, StartError
from exod.http.exchange import error_response, headers_of
from exod.http.generation import MAX_GENERATIONS, Slots
from exod.http.guard import HttpGuard, read_keys
from exod.http.metrics import HttpMetrics
from exod.http.routes import ENDPOINTS, application

MAX_CONNECTIONS: Final = 512
"""uvicorn's own bound, above ours for generations and followers: what remains are idle keep-alives and floods."""

MAX_FOLLOWERS: Final = 32
"""Dashboards that follow `/api/events` at once."""

IDLE_CONNECTION_S: Final = 30
"""How long a client that asks again and again may pause before its connection is closed."""

LAST_WORDS_S: Final = 2
"""After the grace: time to send each client its last event and close."""

DATE_TICK_S: Final = 1.0
"""The Date header counts seconds (RFC 9110, 6.6.1)."""

RENEWS_DATE: Final = 0
"""uvicorn renews that header on ticks that are divisible by ten."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, because the daemon's own decide when it ends, and without its look at
    its flags ten times a second, which was a tenth of an idle daemon's cost.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._exit_wanted = asyncio.Event()

    def leave(self) -> None:
        self.should_exit = True
        self._exit_wanted.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(RENEWS_DATE):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATE_TICK_S):
                    await self._exit_wanted.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpApi:
    """Serves `commands` on host:port (0: any free one). `key_file` holds bearer keys; without one only loopback
    makes sense, and the config refuses anything else.
    """

    def __init__(
        self,
        commands: DaemonCommands,
        host: str,
        port: int,
        key_file: Path | None = None,
        *,
        max_generations: int = MAX_GENERATIONS,
    ) -> None:
        self._commands = commands
        self._host = host
        self._port = port
        self._key_file = key_file
        self._generations = Slots(max_generations)
        self._followers = Slots(MAX_FOLLOWERS)
        self._leaving = asyncio.Event()
        self._last_call = asyncio.Event()
        self._listener: socket.socket | None = None
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        """The port that it listens on, known after `start`."""
        return self._port

    @property
    def url(self) -> str:
        """The base URL for a client on this host."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    @property
    def requests_under_way(self) -> int:
        return self._generations.taken

    def start(self) -> None:
        """Reads the keys and takes the port. Raises StartError or ConfigError, one line each."""
        guard = HttpGuard(read_keys(self._key_file))
        self._listener = _listen(self._host, self._port)
        self._port = self._listener.getsockname()[1]
        metrics = HttpMetrics(self._commands.metrics)
        routes = application(
            self._commands, metrics, self._generations, self._followers, self._leaving, self._last_call
        )
        config = uvicorn.Config(
            _Front(routes, guard, metrics),
            loop="none",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=IDLE_CONNECTION_S,
            timeout_graceful_shutdown=LAST_WORDS_S,
        )
        self._server = _Server(config)

    async def run(self) -> None:
        """Serves until `stop`, or until cancelled, which gives no grace."""
        if self._listener is None or self._server is None:
            raise RuntimeError("HttpApi.run before start")
        serving = asyncio.create_task(self._server.serve([self._listener]), name="uvicorn")
        try:
            await asyncio.shield(serving)
        finally:
            self._refuse_new_work()
            self._last_call.set()
            self._server.leave()
            await asyncio.wait({serving}, timeout=2 * LAST_WORDS_S)
            serving.cancel()
            self.close()

    async def stop(self, grace_s: float) -> None:
        """Lets `run` end: as soon as nothing is generated any more, after `grace_s` at the latest."""
        self._refuse_new_work()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._generations.idle.wait()
        self._last_call.set()
        if self._server is not None:
            self._server.leave()

    def close(self) -> None:
        """Gives the port back: for a start that no run followed. Safe to call twice."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _refuse_new_work(self) -> None:
        self._generations.closed = True
        self._followers.closed = True
        self._leaving.set()


class _Front:
    """Before and after every request: who may ask, and how it was answered."""

    def __init__(self, inner: ASGIApp, guard: HttpGuard, metrics: HttpMetrics) -> None:
        self._inner = inner
        self._guard = guard
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.began()
        try:
            try:
                self._guard.check(scope["path"], headers_of(scope))
            except RequestError as error:
                await error_response(error)(scope, receive, noting)
                return
            await self._inner(scope, receive, noting)
        finally:
            self._metrics.ended(_route(scope["path"]), scope["method"], status)


def _route(path: str) -> str:
    """The endpoint's name for metrics: few values, whatever a stranger asks for."""
    if path.startswith("/v1/models/"):
        return "/v1/models"
    return path if path in ENDPOINTS else "other"


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises StartError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise StartError(f"api.host = {host!r} is no address: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise StartError(_why_not(host, port, error)) from None
    listener.setblocking(False)
    return listener


def _why_not(host: str, port: int, error: OSError) -> str:
    place = f"{host}:{port}"
    match error.errno:
        case errno.EADDRINUSE:
            return f"{place}: the HTTP API's port is in use (by whom: lsof -i :{port}); set api.port to another"
        case errno.EADDRNOTAVAIL:
            return f"{place}: no interface of this host has the address; set api.host to another"
        case errno.EACCES:
            return f"{place}: only root may listen on this port; set api.port to one above 1023"
    return f"{place}: the HTTP API cannot listen: {os.strerror(error.errno or 0)}"
