"""A bare HTTP/1.1 client over asyncio streams: it shows bytes as they come and can leave at any moment.

One request a connection. `ask` reads a whole answer; `open` hands out a stream whose server-sent events are read
one by one.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final

DEADLINE_S: Final = 20.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        code = self.json["error"]["code"]
        assert isinstance(code, str)
        return code


class Stream:
    """An answer that is still coming in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._rest = b""
        self.status = 0
        self.headers: dict[str, str] = {}

    async def head(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            text = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = text.strip().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    async def chunk(self) -> bytes:
        """The next piece of the body; empty at its end."""
        async with asyncio.timeout(DEADLINE_S):
            if self.headers.get("transfer-encoding") != "chunked":
                return await self._reader.read(65536)
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            return (await self._reader.readexactly(size + 2))[:-2]

    async def event(self) -> str | None:
        """The next server-sent event or comment, without its blank line; None at the end."""
        while b"\n\n" not in self._rest:
            piece = await self.chunk()
            if not piece:
                return None
            self._rest += piece
        text, self._rest = self._rest.split(b"\n\n", 1)
        return text.decode()

    async def events(self) -> list[str]:
        """All that is left."""
        found = []
        while (event := await self.event()) is not None:
            found.append(event)
        return found

    async def body(self) -> bytes:
        data = b""
        while piece := await self.chunk():
            data += piece
        return data

    def close(self) -> None:
        self._writer.close()


class RawHttp:
    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._host = host
        self._port = port

    async def open(
        self, method: str, path: str, value: Any = None, headers: dict[str, str] | None = None
    ) -> Stream:
        """Sends a request (`value` as JSON, bytes as they are) and reads the answer's head."""
        body = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=2**20)
        fields = {
            "host": f"{self._host}:{self._port}",
            "content-length": str(len(body)),
            "connection": "close",
            **(headers or {}),
        }
        head = "".join(f"{name}: {text}\r\n" for name, text in fields.items())
        writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        stream = Stream(reader, writer)
        await stream.head()
        return stream

    async def ask(self, method: str, path: str, value: Any = None, headers: dict[str, str] | None = None) -> Answer:
        stream = await self.open(method, path, value, headers)
        body = await stream.body()
        stream.close()
        return Answer(stream.status, stream.headers, body)
