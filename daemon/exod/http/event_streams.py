"""What a client can follow as server-sent events until it leaves: `GET /api/events` and `GET /api/live`.

`/api/events` is the event log, then what happens. `/api/live` is what the page shows, in two kinds of events:
`state` (status, engine and what may be done, at most one a second, and at once after an event of the daemon) and
`log` (one event of the daemon's log). An event's id is its time; `?since=T` (Unix seconds) or the header
`Last-Event-ID`, which browsers send by themselves, leaves out older events. Decides how often a viewer gets a
state, and that one snapshot serves all viewers. Reads snapshots; never changes anything. Times in seconds.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from contextlib import aclosing
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from exod.alert_table import kind_of
from exod.daemon_api import stream_keepalive
from exod.daemon_api.interface import DaemonCommands
from exod.daemon_api.shapes import EngineReport, StatusReport, flat_event
from exod.daemon_api.stream_keepalive import paced
from exod.errors import RequestError
from exod.http.dialects.fields import FieldError
from exod.http.dialects.openai_answers import sse_comment
from exod.http.exchange import ClientGoneError, Reply, StoppedError, unless_over
from exod.http.generation import Slots, shutting_down
from exod.model import Event

TICK_S: Final = 1.0
"""A cut must be seen within a second; figures that change faster than once a second cannot be read."""

FRESH_S: Final = 0.2
"""A snapshot serves all viewers for this long: in a burst of events a viewer gets five states a second."""

FIRST_LOG_S: Final = 3600.0
"""How far back the log goes for a viewer that names no time: it shows what led to the present state."""


class LiveState(msgspec.Struct, frozen=True):
    """One `state` event. `actions` says whether the page may load, unload, drain and renegotiate."""

    at: float
    status: StatusReport
    engine: EngineReport
    actions: bool
    degraded_ms: float
    """The configured limit of a path's RTT."""
    cures: dict[str, str]
    """By code, for the reasons of the status."""


class EventStream(ABC):
    """An ASGI application for one route. `leaving` ends it; `followers` bounds how many there are."""

    def __init__(self, commands: DaemonCommands, followers: Slots, leaving: asyncio.Event) -> None:
        self._commands = commands
        self._followers = followers
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(send)
        try:
            since = _since(Request(scope))
            with self._followers.take():
                await reply.begin()
                await unless_over(self._follow(since, reply), receive, self._leaving)
        except ClientGoneError:
            return
        except StoppedError:
            await reply.fail(shutting_down())
        except RequestError as error:
            await reply.fail(error)

    @abstractmethod
    async def _follow(self, since: float | None, reply: Reply) -> None:
        """Sends events until it is cancelled."""


class LogStream(EventStream):
    async def _follow(self, since: float | None, reply: Reply) -> None:
        async with aclosing(paced(self._commands.events(since, True), stream_keepalive.KEEP_ALIVE_S)) as events:
            async for event in events:
                await reply.event(sse_comment("keep-alive") if event is None else _frame(event))
        await reply.finish(b"")


class LiveStream(EventStream):
    """`actions` says whether the page may act; `degraded_ms` is `mesh.degraded_ms`."""

    def __init__(
        self,
        commands: DaemonCommands,
        followers: Slots,
        leaving: asyncio.Event,
        *,
        actions: bool,
        degraded_ms: float,
    ) -> None:
        super().__init__(commands, followers, leaving)
        self._actions = actions
        self._degraded_ms = degraded_ms
        self._taken_at = float("-inf")
        self._state_frame = b""

    async def _follow(self, since: float | None, reply: Reply) -> None:
        since = time.time() - FIRST_LOG_S if since is None else since
        sent = self._state()
        await reply.event(sent)
        async with aclosing(paced(self._commands.events(since, True), TICK_S)) as events:
            async for event in events:
                if event is not None:
                    await reply.event(_frame(event, b"event: log\n"))
                state = self._state()
                if state is not sent:
                    sent = state
                    await reply.event(state)
        await reply.finish(b"")

    def _state(self) -> bytes:
        """The newest snapshot, the same bytes for every viewer."""
        now = time.monotonic()
        if now - self._taken_at >= FRESH_S:
            status = self._commands.status()
            cures = {reason.code: kind_of(reason.code).cure for reason in status.reasons}
            state = LiveState(time.time(), status, self._commands.engine(), self._actions, self._degraded_ms, cures)
            self._state_frame = b"event: state\ndata: %s\n\n" % msgspec.json.encode(state)
            self._taken_at = now
        return self._state_frame


def _frame(event: Event, kind: bytes = b"") -> bytes:
    return b"id: %s\n%sdata: %s\n\n" % (repr(event.ts).encode(), kind, msgspec.json.encode(flat_event(event)))


def _since(request: Request) -> float | None:
    for name, text in (
        ("since", request.query_params.get("since")),
        ("Last-Event-ID", request.headers.get("last-event-id")),
    ):
        if text:
            try:
                return float(text)
            except ValueError:
                raise FieldError(name, "expected Unix seconds, such as 1750000000.5") from None
    return None
