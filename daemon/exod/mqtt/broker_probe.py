"""Asks who listens on a port: a broker that takes this node, one that does not, something else, or nobody.

A real MQTT CONNECT (3.1.1) and its answer, then a proper DISCONNECT: an open port alone says nothing. Decides
nothing.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from enum import StrEnum
from typing import Final

PROBE_S: Final = 1.0
"""A broker on loopback answers within a millisecond; one that needs a second is of no use."""

_DISCONNECT: Final = b"\xe0\x00"
_CONNACK: Final = 0x20
_ACCEPTED: Final = 0


class Listener(StrEnum):
    BROKER = "broker"
    REFUSING_BROKER = "refusing_broker"
    STRANGER = "stranger"
    NOBODY = "nobody"


async def who_listens(host: str, port: int, timeout_s: float = PROBE_S) -> Listener:
    """Who answers an anonymous CONNECT at `host:port`."""
    try:
        async with asyncio.timeout(timeout_s):
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except OSError:
                return Listener.NOBODY
            try:
                return await _ask(reader, writer)
            finally:
                writer.close()
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        return Listener.STRANGER


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Listener:
    writer.write(_connect(f"exod-probe-{os.getpid()}"))
    await writer.drain()
    answer = await reader.readexactly(4)
    if answer[0] != _CONNACK or answer[1] != 2:
        return Listener.STRANGER
    if answer[3] != _ACCEPTED:
        return Listener.REFUSING_BROKER
    writer.write(_DISCONNECT)
    with suppress(OSError):
        await writer.drain()
    return Listener.BROKER


def _connect(client_id: str) -> bytes:
    """A CONNECT packet: clean session, keepalive 10 s, no will, no credentials (MQTT 3.1.1, section 3.1)."""
    name = client_id.encode()
    body = b"\x00\x04MQTT\x04\x02\x00\x0a" + len(name).to_bytes(2, "big") + name
    return bytes((0x10, len(body))) + body
