"""What a client can follow as server-sent events until it leaves: `GET /api/events` and `GET /api/live`.

`/api/events` is the event log, then what happens. `/api/live` is what the page shows, in three kinds of events:
`state` (status, engine and what may be done, at most one a second, and at once after an event of the daemon), `log`
(one event of the daemon's log) and, once for a viewer that names no time, `history` (the RTT of the last hour).
An event's id is its time; `?since=T` (Unix seconds) or the header `Last-Event-ID`, which browsers send by
themselves, leaves out older events. Decides how often a viewer gets a state, and that one snapshot serves all
viewers. Reads snapshots; never changes anything. Times in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from exod.alert_table import Severity, kind_of
from exod.daemon_api import stream_keepalive
from exod.daemon_api.interface import DaemonCommands
from exod.daemon_api.shapes import EngineReport, PathTrace, StatusReport, flat_event
from exod.daemon_api.stream_keepalive import paced
from exod.errors import RequestError
from exod.http.dialects.fields import FieldError
from exod.http.dialects.openai_answers import sse_comment
from exod.http.exchange import ClientGoneError, Reply, StoppedError, unless_over
from exod.http.generation import RequestSlots, shutting_down
from exod.http.running import RunningRequest
from exod.model import Event, Kind, NodeId, PathId

TICK_S: Final = 1.0
"""A cut must be seen within a second; figures that change faster than once a second cannot be read."""

FRESH_S: Final = 0.2
"""A snapshot serves all viewers for this long: in a burst of events a viewer gets five states a second."""

MOST_TRACES: Final = 24
"""Paths of which a viewer gets the last hour: more lines in one chart cannot be told apart."""

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
    """By code, for the reasons and notes of the status."""
    severities: dict[str, Severity]
    """By code, for the reasons."""
    requests: tuple[RunningRequest, ...]
    """Under way through this node."""


class TraceLine(msgspec.Struct, frozen=True):
    """A path's RTT, oldest first, one sample each `every_s`; None where it was dead."""

    peer: NodeId
    peer_name: str
    path: PathId
    interface: str
    kind: Kind
    every_s: float
    rtt_ms: tuple[float | None, ...]
    in_use: str
    """A letter for each sample: 1 where the path was in use, else 0."""

    @staticmethod
    def of(trace: PathTrace) -> TraceLine:
        in_use = "".join("1" if one else "0" for one in trace.selected)
        return TraceLine(
            trace.peer,
            trace.peer_name,
            trace.path,
            trace.interface,
            trace.kind,
            trace.every_s,
            trace.rtt_ms,
            in_use,
        )


class LiveHistory(msgspec.Struct, frozen=True):
    """The one `history` event; its newest samples are of `at`."""

    at: float
    traces: tuple[TraceLine, ...]


class EventStream(ABC):
    """An ASGI application for one route. `leaving` ends it; `followers` bounds how many there are."""

    def __init__(self, commands: DaemonCommands, followers: RequestSlots, leaving: asyncio.Event) -> None:
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
        followers: RequestSlots,
        leaving: asyncio.Event,
        requests: Callable[[], tuple[RunningRequest, ...]],
        *,
        actions: bool,
        degraded_ms: float,
    ) -> None:
        super().__init__(commands, followers, leaving)
        self._requests = requests
        self._actions = actions
        self._degraded_ms = degraded_ms
        self._taken_at = float("-inf")
        self._state_frame = b""

    async def _follow(self, since: float | None, reply: Reply) -> None:
        if since is None:
            since = time.time() - FIRST_LOG_S
            await reply.event(self._history())
        sent = self._state()
        await reply.event(sent)
        is_behind = False

        def idle_s() -> float:
            return FRESH_S if is_behind else TICK_S

        async with aclosing(paced(self._commands.events(since, True), idle_s)) as events:
            async for event in events:
                if event is not None:
                    await reply.event(_frame(event, b"event: log\n"))
                taken_at = self._taken_at
                state = self._state()
                # The snapshot is older than what happened, and too young for another one: soon, not in a second.
                is_behind = event is not None and self._taken_at == taken_at
                if state is not sent:
                    sent = state
                    await reply.event(state)
        await reply.finish(b"")

    def _state(self) -> bytes:
        """The newest snapshot, the same bytes for every viewer."""
        now = time.monotonic()
        if now - self._taken_at >= FRESH_S:
            status = self._commands.status()
            state = LiveState(
                at=time.time(),
                status=status,
                engine=self._commands.engine(),
                actions=self._actions,
                degraded_ms=self._degraded_ms,
                cures={one.code: kind_of(one.code).cure for one in (*status.reasons, *status.notes)},
                severities={reason.code: kind_of(reason.code).severity for reason in status.reasons},
                requests=self._requests(),
            )
            self._state_frame = b"event: state\ndata: %s\n\n" % msgspec.json.encode(state)
            self._taken_at = now
        return self._state_frame

    def _history(self) -> bytes:
        traces = self._commands.rtt_traces()[:MOST_TRACES]
        shown = LiveHistory(time.time(), tuple(TraceLine.of(trace) for trace in traces))
        return b"event: history\ndata: %s\n\n" % msgspec.json.encode(shown)


def _frame(event: Event, kind: bytes = b"") -> bytes:
    return b"id: %s\n%sdata: %s\n\n" % (repr(event.ts).encode(), kind, msgspec.json.encode(flat_event(event)))


def _since(request: Request) -> float | None:
    for name, text in (
        ("since", request.query_params.get("since")),
        ("Last-Event-ID", request.headers.get("last-event-id")),
    ):
        if text:
            with contextlib.suppress(ValueError):
                if math.isfinite(since := float(text)):
                    return since
            raise FieldError(name, "expected Unix seconds, such as 1750000000.5")
    return None
