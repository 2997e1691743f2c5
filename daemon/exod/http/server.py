"""The HTTP API as a server: it takes its port, serves inside the daemon's loop, and ends in order.

Decides the order of the start and of the end. `start` takes the port before anything is announced, and may raise
StartError or ConfigError. `stop` ends event streams at once and refuses new requests; generations get a grace time,
and those that are left after it end with an error. uvicorn installs no signal handler here. The routes are in
`routes.py` and `generation.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exod.config.settings import Config
from exod.daemon_api.interface import DaemonCommands
from exod.daemon_api.loop_turns import LoopTurns
from exod.daemon_api.shared_tick import until_next
from exod.errors import ExitCode, RequestError
from exod.http.body import BodyReader
from exod.http.connection import CROWDED, HEAD_DEADLINE_S, HttpConnection, OpenConnections
from exod.http.exchange import check_framing, error_response, error_shape, headers_of
from exod.http.generation import MAX_GENERATIONS, RequestSlots
from exod.http.guard import HttpGuard, read_keys
from exod.http.listening import listen
from exod.http.metrics import HttpMetrics
from exod.http.routes import ENDPOINTS, application
from exod.http.tls import Certificate

MAX_FOLLOWERS: Final = 64
"""Dashboards and pages that may follow this node at once."""

IDLE_CONNECTION_S: Final = 30
"""How long a kept-alive connection may be idle before it is closed."""

LAST_WORDS_S: Final = 2
"""After the grace: time to send each client its last event and close."""

HANDSHAKE_DEADLINE_S: Final = HEAD_DEADLINE_S
"""A connection that never ends its TLS handshake costs a descriptor as one without a head does."""

DATE_TICK_S: Final = 1.0
"""The Date header counts seconds (RFC 9110, 6.6.1)."""

RENEWS_DATE: Final = 0
"""uvicorn renews that header on ticks that are divisible by ten."""


METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""The methods that metrics count by name. A client may send any method; as a label each would stay in memory for
ever."""

SAFE_HEADERS: Final = ((b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin"))
"""With these a browser never uses an answer as a script or a style, and gives none to a page of another site that
embeds it. They do not affect CORS requests of allowed origins."""


CLOSE: Final = (b"connection", b"close")

WATCHED: Final = frozenset({"/health", "/ready", "/metrics"})
"""Answered even where too many clients are connected, so that monitoring still sees this node."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, because the daemon handles signals, and without its polling of flags ten
    times a second, which was a tenth of an idle daemon's CPU time. A TLS handshake is given up as a head is.
    """

    def __init__(self, config: uvicorn.Config, each_second: Callable[[], None]) -> None:
        super().__init__(config)
        self._each_second = each_second
        self._exit_wanted = asyncio.Event()

    def leave(self) -> None:
        self.should_exit = True
        self._exit_wanted.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own for sockets that are bound already, but for the deadline, which it leaves at 60 s."""
        await self.lifespan.startup()
        protocol: Any = self.config.http_protocol_class
        make = partial(
            protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        loop = asyncio.get_running_loop()
        encrypted = self.config.ssl
        deadline = HANDSHAKE_DEADLINE_S if encrypted else None
        self.servers = [
            await loop.create_server(
                make, sock=one, ssl=encrypted, ssl_handshake_timeout=deadline, backlog=self.config.backlog
            )
            for one in sockets or ()
        ]
        self.started = True

    async def main_loop(self) -> None:
        while not await self.on_tick(RENEWS_DATE):
            self._each_second()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until_next(DATE_TICK_S)):
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
        hosts: tuple[str, ...] = (),
        origins: tuple[str, ...] = (),
        tls: tuple[Path, Path] | None = None,
        actions: bool = True,
        degraded_ms: float = 5.0,
        max_generations: int = MAX_GENERATIONS,
    ) -> None:
        self._commands = commands
        self._host = host
        self._port = port
        self._key_file = key_file
        self._hosts, self._origins = hosts, origins
        self._tls = tls
        self._turns = LoopTurns()
        self._bodies = BodyReader(self._turns)
        self._actions = actions
        self._degraded_ms = degraded_ms
        self._generations = RequestSlots(max_generations)
        self._followers = RequestSlots(MAX_FOLLOWERS)
        self._leaving = asyncio.Event()
        self._last_call = asyncio.Event()
        self._listeners: list[socket.socket] = []
        self._server: _Server | None = None

    @classmethod
    def from_config(cls, commands: DaemonCommands, settings: Config) -> HttpApi:
        config = settings.api
        return cls(
            commands,
            config.host,
            config.port,
            config.key_file,
            hosts=config.hosts,
            origins=config.origins,
            tls=(config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None,
            actions=config.commands,
            degraded_ms=settings.mesh.degraded_ms,
        )

    @property
    def port(self) -> int:
        """The port that it listens on; known after `start`."""
        return self._port

    @property
    def url(self) -> str:
        """The base URL for a client on this host."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        scheme = "https" if self._tls else "http"
        return f"{scheme}://[{host}]:{self._port}" if ":" in host else f"{scheme}://{host}:{self._port}"

    @property
    def requests_under_way(self) -> int:
        return self._generations.taken

    def start(self) -> None:
        """Reads the keys and takes the port. Raises StartError or ConfigError, one line each."""
        keys = read_keys(self._key_file)
        guard = HttpGuard(keys, self._hosts, self._origins)
        certificate = Certificate(*self._tls) if self._tls else None
        self._listeners = listen(self._host, self._port)
        self._port = self._listeners[0].getsockname()[1]
        metrics = HttpMetrics(self._commands.metrics)
        routes = application(
            self._commands,
            metrics,
            self._bodies,
            self._generations,
            self._followers,
            self._leaving,
            self._last_call,
            keyed=bool(keys),
            actions=self._actions,
            degraded_ms=self._degraded_ms,
        )
        config = uvicorn.Config(
            _GuardedApp(routes, guard, metrics, self._turns),
            loop="none",
            http=partial(HttpConnection, connections=OpenConnections(self._turns)),  # type: ignore[arg-type]  # uvicorn only calls it
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=IDLE_CONNECTION_S,
            timeout_graceful_shutdown=LAST_WORDS_S,
        )
        config.load()
        config.ssl = certificate.context if certificate else None
        self._server = _Server(config, certificate.renew if certificate else lambda: None)

    async def run(self) -> None:
        """Serves until `stop`, or until it is cancelled, which gives no grace time."""
        if self._server is None:
            raise RuntimeError("HttpApi.run before start")
        serving = asyncio.create_task(self._server.serve(self._listeners), name="uvicorn")
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
        """Makes `run` end: as soon as no generation is under way, after `grace_s` at the latest."""
        self._refuse_new_work()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._generations.idle.wait()
        self._last_call.set()
        if self._server is not None:
            self._server.leave()

    def close(self) -> None:
        """Frees the port, for a `start` without a `run`. Safe to call twice."""
        self._bodies.close()
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def _refuse_new_work(self) -> None:
        self._generations.closed = True
        self._followers.closed = True
        self._leaving.set()


class _GuardedApp:
    """Runs around every request: its turn and the guard before it, safe headers and CORS on its answer, metrics
    after it.
    """

    def __init__(self, inner: ASGIApp, guard: HttpGuard, metrics: HttpMetrics, turns: LoopTurns) -> None:
        self._inner = inner
        self._guard = guard
        self._metrics = metrics
        self._turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._turns.wait()
        status = 0
        headers = headers_of(scope)
        added = [*SAFE_HEADERS, *self._guard.cors(headers)]
        crowded = CROWDED in scope.get("state", {})
        if crowded:
            added.append(CLOSE)

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        scope["path"] = path = _plain_path(scope["path"])
        self._metrics.began()
        try:
            try:
                check_framing(scope)
                preflight = self._guard.preflight(headers) if scope["method"] == "OPTIONS" else None
                if preflight is not None:
                    added += [header for header in preflight if header not in added]
                    await Response(status_code=204)(scope, receive, noting)
                    return
                self._guard.check(path, headers)
                if crowded and path not in WATCHED:
                    raise _too_many()
            except RequestError as error:
                await _refuse(error, scope, receive, noting)
                return
            await self._inner(scope, receive, noting)
        finally:
            self._metrics.ended(_route(path), _method(scope["method"]), status)


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Also closes the connection: what follows on it may be the rest of the refused body."""
    response = error_response(error, error_shape(scope["path"]))
    if CROWDED not in scope.get("state", {}):
        response.headers["connection"] = "close"
    await response(scope, receive, send)


def _plain_path(path: str) -> str:
    """Without the slashes that come of a base URL with one at its end, and of a path with one at its own."""
    path = "/" + path.strip("/")
    return f"/v1/{path[4:].lstrip('/')}" if path.startswith("/v1//") else path


def _too_many() -> RequestError:
    text = "too many connections are open to this node; close some, or ask again"
    return RequestError("unavailable", text, ExitCode.DEGRADED)


def _route(path: str) -> str:
    """The endpoint's name for metrics: one of few values, whatever path a client asks for."""
    if path.startswith("/v1/models/"):
        return "/v1/models"
    if path.startswith("/v1/cancel/"):
        return "/v1/cancel"
    return path if path in ENDPOINTS else "other"


def _method(method: str) -> str:
    return method if method in METHODS else "other"
