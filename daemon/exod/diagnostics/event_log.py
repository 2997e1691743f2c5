"""The bounded event log: in memory for readers, and on disk so that it outlives a restart.

Writes what others decided; decides nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import structlog

from exod.model import Event
from exoengine.decoding import DecodingError, decode

log = structlog.get_logger()

EVENTS_FILE: Final = "events.ndjson"
MAX_EVENTS: Final = 4096
"""A busy day of a cluster that flaps at its bucket's limit makes some hundred events; 4,096 hold more than a
week, in about 1 MB."""

MAX_FILE_BYTES: Final = 2 * 1024 * 1024
"""Two files of this size at the most: the present one and the one before."""

MAX_FOLLOWER_BACKLOG: Final = 1024
"""A follower that reads more slowly than events come loses the oldest of this many."""

WARNINGS: Final = frozenset(
    {
        "node.down",
        "path.dead",
        "engine.aborted",
        "engine.restarted",
        "alert.raised",
        "crash.seen",
        "internal.error",
        "file.damaged",
        "folder.restored",
    }
)
"""What a person who reads only warnings must see."""


LOG_FIELDS: Final = frozenset({"event", "subject", "level", "timestamp"})
"""Names that a log line has of its own."""


class KeptEvents(NamedTuple):
    """What lies on the disk, oldest first. `torn`: the last line has no end, as a crash leaves it."""

    events: list[Event]
    unreadable: int
    torn: bool


def kept_events(folder: Path) -> KeptEvents:
    """What earlier lives wrote; a line that was torn by a crash, or damaged on the disk, is passed over."""
    file = folder / EVENTS_FILE
    events = []
    unreadable = 0
    torn = False
    decoder = msgspec.json.Decoder(Event)
    for one in (file.with_suffix(".ndjson.1"), file):
        try:
            with one.open("rb") as stream:
                data = stream.read(2 * MAX_FILE_BYTES)
        except OSError:
            continue
        torn = bool(data) and not data.endswith(b"\n")
        for line in data.splitlines():
            try:
                events.append(decode(decoder, line))
            except DecodingError:
                unreadable += 1
    return KeptEvents(events[-MAX_EVENTS:], unreadable, torn)


class EventLog:
    """`on_event` hooks are called for each new event, in the loop; they must not block."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / EVENTS_FILE
        kept = kept_events(folder)
        if kept.unreadable:
            log.warning("events_unreadable", file=str(self._file), lines=kept.unreadable, read=len(kept.events))
        self._torn = b"\n" if kept.torn else b""
        """Ends a line that an earlier life left without its end, so that the next one is not lost with it."""
        self._events: deque[Event] = deque(kept.events, maxlen=MAX_EVENTS)
        self._followers: set[asyncio.Queue[Event]] = set()
        self.on_event: list[Callable[[Event], None]] = []
        self.count = 0

    def write(self, event: Event) -> None:
        """Stamps the event with the wall clock where it has no stamp."""
        if not event.ts:
            event = msgspec.structs.replace(event, ts=round(time.time(), 6))
        self.count += 1
        self._events.append(event)
        tell = log.warning if event.type in WARNINGS else log.info
        fields = {f"{name}_" if name in LOG_FIELDS else name: value for name, value in event.data.items()}
        tell(event.type, subject=event.subject, **fields)
        try:
            if self._file.exists() and self._file.stat().st_size > MAX_FILE_BYTES:
                self._file.replace(self._file.with_suffix(".ndjson.1"))
                self._torn = b""
            with self._file.open("ab") as stream:
                stream.write(self._torn + msgspec.json.encode(event) + b"\n")
            self._torn = b""
        except OSError as error:
            log.warning("event_file_failed", file=str(self._file), error=error.strerror)
        for follower in self._followers:
            if follower.full():
                follower.get_nowait()
            follower.put_nowait(event)
        for hook in self.on_event:
            hook(event)

    def write_again(self) -> None:
        """Where the file was removed. Raises OSError."""
        if not self._file.exists():
            self._file.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in self._events))
            self._torn = b""

    def recent(self, kind: str, since: float) -> list[Event]:
        """Those of one type that are later than `since` (Unix seconds), oldest first."""
        return [event for event in self._events if event.type == kind and event.ts > since]

    def _later(self, since: float | None) -> list[Event]:
        """Those after the event of exactly that time, as they were written: a clock that was set back stamps later
        ones earlier. Where there is none of that time, those with a later stamp.
        """
        kept = list(self._events)
        places = [place for place, event in enumerate(kept) if event.ts == since]
        if places:
            return kept[places[-1] + 1 :]
        return kept if since is None else [event for event in kept if event.ts > since]

    async def read(self, since: float | None, follow: bool) -> AsyncGenerator[Event, None]:
        """Events later than `since` (Unix seconds; None: all that are kept), then new ones while `follow`."""
        queue: asyncio.Queue[Event] = asyncio.Queue(MAX_FOLLOWER_BACKLOG)
        if follow:
            self._followers.add(queue)
        try:
            for event in self._later(since):
                yield event
            while follow:
                yield await queue.get()
        finally:
            self._followers.discard(queue)
