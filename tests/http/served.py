"""The HTTP API through real uvicorn and real sockets, before a daemon that only counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from exod.http.server import HttpApi
from tests.fake_daemon import FakeDaemon
from tests.http.raw_http import DEADLINE_S, RawHttp

CHAT = "/v1/chat/completions"
KEY = "0123456789abcdef0123456789abcdef"


def count(first: int, last: int, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"count from {first} to {last}"}], **more}


class Place:
    """A served API and the fake daemon behind it."""

    def __init__(self, api: HttpApi, daemon: FakeDaemon, running: asyncio.Task[None]) -> None:
        self.api = api
        self.daemon = daemon
        self.running = running
        self.http = RawHttp(api.port)

    async def quiet(self) -> None:
        """Until no stream of the daemon is open any more."""
        async with asyncio.timeout(DEADLINE_S):
            while self.daemon.running:  # noqa: ASYNC110 - a fake's plain field
                await asyncio.sleep(0.005)


@asynccontextmanager
async def served(
    key_file: Path | None = None, max_generations: int = 64, host: str = "127.0.0.1", **more: Any
) -> AsyncIterator[Place]:
    daemon = FakeDaemon()
    api = HttpApi(daemon, host, 0, key_file, max_generations=max_generations, **more)
    api.start()
    running = asyncio.create_task(api.run(), name="http api")
    await asyncio.sleep(0)
    place = Place(api, daemon, running)
    try:
        yield place
    finally:
        async with asyncio.timeout(DEADLINE_S):
            await api.stop(0.0)
            await running
        assert daemon.running == 0, "no generation and no follower outlives the server"


def data_of(events: list[str]) -> list[Any]:
    """The JSON of all events but the last, which must say [DONE]."""
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1] if event.startswith("data: ")]
