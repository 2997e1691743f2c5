"""A served control socket, and clients that speak its lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from exod.local_api.protocol import MAX_LINE_BYTES
from exod.local_api.server import LocalApi
from tests.fake_daemon import FakeDaemon

DEADLINE_S = 20.0


class Client:
    """One connection that speaks lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, line: bytes) -> None:
        self.writer.write(line)
        await self.writer.drain()

    async def read(self) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE_S):
            line = await self.reader.readline()
        assert line, "the connection was closed"
        reply = json.loads(line)
        assert isinstance(reply, dict)
        return reply

    async def ask(self, verb: str, **args: Any) -> dict[str, Any]:
        await self.send(json.dumps({"v": 1, "id": 1, "verb": verb, "args": args}).encode() + b"\n")
        return await self.read()

    async def error(self, verb: str, **args: Any) -> dict[str, Any]:
        reply = await self.ask(verb, **args)
        assert reply["end"] is True
        error = reply["error"]
        assert isinstance(error, dict)
        return error


class Place:
    """A served socket, and the clients that a test opens to it."""

    def __init__(self, path: Path, daemon: FakeDaemon) -> None:
        self.path = path
        self.daemon = daemon
        self._clients: list[Client] = []

    async def client(self) -> Client:
        client = Client(*await asyncio.open_unix_connection(str(self.path), limit=2 * MAX_LINE_BYTES))
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.writer.close()


@asynccontextmanager
async def served(folder: Path, *, debug: bool = False) -> AsyncIterator[Place]:
    daemon = FakeDaemon()
    shell = LocalApi(daemon, folder / "exod.sock", debug_enabled=debug)
    shell.start()
    running = asyncio.create_task(shell.run(), name="control socket")
    place = Place(folder / "exod.sock", daemon)
    await asyncio.sleep(0)  # a task that is cancelled before its first step cleans nothing up
    try:
        yield place
    finally:
        place.close()
        running.cancel()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait({running})
        assert running.cancelled(), "the socket's task ends only because it was cancelled"
        assert not place.path.exists(), "the socket's file is gone afterwards"
        assert daemon.running == 0, "no stream outlives its client"


async def soon(condition: Any) -> None:
    """Waits until `condition()` holds: what a shell does after its client has gone, nobody is told."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the condition is a fake's plain field
            await asyncio.sleep(0.005)
