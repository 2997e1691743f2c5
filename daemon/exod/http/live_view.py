"""`GET /api/live`: what the page shows, as server-sent events, until the viewer leaves.

Two kinds of events: `state` (status, engine and what may be done, at most one a second, and at once after an event
of the daemon) and `log` (one event of the daemon's log, its id being its time). Decides how often a viewer is told,
and that a snapshot is made once for all viewers. Reads snapshots; never changes anything. Times in seconds.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from exod.daemon_api.interface import DaemonCommands
from exod.daemon_api.shapes import EngineReport, StatusReport, flat_event
from exod.daemon_api.stream_keepalive import paced
from exod.errors import RequestError
from exod.http.exchange import ClientGoneError, Reply, StoppedError, unless_over
from exod.http.generation import Slots, shutting_down
from exod.model import Event

TICK_S: Final = 1.0
"""A cut must be seen within a second; figures that change faster than once a second cannot be read."""

FRESH_S: Final = 0.2
"""A snapshot serves all viewers for this long: in a burst of events a viewer gets five states a second."""

FIRST_LOG_S: Final = 3600.0
"""How far back the log goes for a viewer that asks for nothing: what led to what is on the screen."""


class LiveState(msgspec.Struct, frozen=True):
    """One `state` event. `actions` says whether the page may load, unload, drain and renegotiate."""

    at: float
    status: StatusReport
    engine: EngineReport
    actions: bool


class LiveView:
    """An ASGI application for one route."""

    def __init__(
        self, commands: DaemonCommands, followers: Slots, leaving: asyncio.Event, *, actions: bool
    ) -> None:
        self._commands = commands
        self._followers = followers
        self._leaving = leaving
        self._actions = actions
        self._taken_at = float("-inf")
        self._frame = b""

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

    async def _follow(self, since: float, reply: Reply) -> None:
        sent = self._state()
        await reply.event(sent)
        async with aclosing(paced(self._commands.events(since, True), TICK_S)) as events:
            async for event in events:
                if event is not None:
                    await reply.event(_log_frame(event))
                state = self._state()
                if state is not sent:
                    sent = state
                    await reply.event(state)
        await reply.finish(b"")

    def _state(self) -> bytes:
        """The newest snapshot, the same bytes for every viewer."""
        now = time.monotonic()
        if now - self._taken_at >= FRESH_S:
            state = LiveState(time.time(), self._commands.status(), self._commands.engine(), self._actions)
            self._frame = b"event: state\ndata: %s\n\n" % msgspec.json.encode(state)
            self._taken_at = now
        return self._frame


def _log_frame(event: Event) -> bytes:
    return b"id: %s\nevent: log\ndata: %s\n\n" % (repr(event.ts).encode(), msgspec.json.encode(flat_event(event)))


def _since(request: Request) -> float:
    text = request.query_params.get("since")
    if not text:
        return time.time() - FIRST_LOG_S
    try:
        return float(text)
    except ValueError:
        raise RequestError("invalid_value", "since: expected Unix seconds, such as 1750000000.5") from None
