"""What `exoctl ping` asks of a running daemon: round trips of one path, as its probes measure them.

Waits for the next answer to a probe and sends none by itself. Errors for people are RequestError.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Final

from exod.core.status.view import PathView
from exod.daemon_api.shapes import PingReply
from exod.errors import ExitCode, RequestError
from exod.model import NodeId, PathId
from exod.status.snapshot import StatusBuilder

PING_INTERVAL_S: Final = 0.2
PING_DEADLINE_S: Final = 2.0
"""The slowest pair is probed once a second: an answer comes within two, or the path does not answer."""


class PingAnswers:
    def __init__(self, status: StatusBuilder) -> None:
        self._status = status

    async def ping(self, peer: NodeId, path: PathId | None, count: int) -> AsyncGenerator[PingReply, None]:
        """Each answer is a probe of its own; the RTT is measured between kernel stamps, as for the selection."""
        for seq in range(1, count + 1):
            yield await self._ping_once(peer, path, seq)
            if seq < count:
                await asyncio.sleep(PING_INTERVAL_S)

    async def _ping_once(self, peer: NodeId, path: PathId | None, seq: int) -> PingReply:
        target, name = self._pinged(peer, path)
        before = target.samples
        deadline = time.monotonic() + PING_DEADLINE_S
        while time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            now, name = self._pinged(peer, target.id)
            if now.samples != before and now.last_rtt_ms is not None:
                return _reply(seq, peer, name, now, round(now.last_rtt_ms * 1e3, 1), "")
        return _reply(seq, peer, name, target, None, f"no answer within {PING_DEADLINE_S:g} s: {target.why}")

    def _pinged(self, peer: NodeId, path: PathId | None) -> tuple[PathView, str]:
        link = next((link for link in self._status.view().links if link.peer == peer), None)
        if link is None:
            raise RequestError("no_such_peer", f"there is no peer {peer}")
        wanted = path or link.selected
        found = next((one for one in link.paths if one.id == wanted), None)
        if found is None:
            text = f"no path to {link.peer_name} is selected: exoctl links {link.peer_name} says why"
            raise RequestError("no_path", text, ExitCode.NO_PATH)
        return found, link.peer_name


def _reply(seq: int, peer: NodeId, name: str, path: PathView, rtt_us: float | None, text: str) -> PingReply:
    return PingReply(seq, peer, name, path.id, path.interface, path.kind, path.local, path.remote, rtt_us, text)
