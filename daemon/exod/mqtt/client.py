"""aiomqtt's client, made safe for a connection that is reset under uvloop.

aiomqtt registers its socket for writing in a later turn of the loop. By then the socket may be closed; and when a
peer resets a connection, uvloop closes its poll handle for good without telling anybody (libuv's POLLERR), so that
the next registration raises inside a callback of the loop: a traceback in the log, and a client that waits for an
answer until its timeout. Here such a registration ends the connection, as a lost one: at the latest with the next
ping, since a socket that lost its poll handle hears nothing of its own accord.

An override, not a patch: where a later aiomqtt names its method differently, this does nothing.
"""

from __future__ import annotations

from typing import Any

import aiomqtt
from paho.mqtt.client import Client as PahoClient


class Client(aiomqtt.Client):
    """Use as aiomqtt.Client."""

    def _on_socket_register_write(self, client: PahoClient, userdata: Any, sock: Any) -> None:
        """paho has something to send. It may call from the thread that connects."""

        def write() -> None:
            try:
                client.loop_write()
            except Exception as error:
                self._break(error)

        def register() -> None:
            try:
                if sock.fileno() >= 0:
                    self._loop.add_writer(sock.fileno(), write)
            except (RuntimeError, OSError, ValueError) as error:
                self._break(error)

        self._loop.call_soon_threadsafe(register)

    def _on_disconnect(self, *args: Any, **kwargs: Any) -> None:
        """aiomqtt forgets how a connection ended that was lost while it was made, and asyncio would log a traceback
        for that.
        """
        super()._on_disconnect(*args, **kwargs)
        if self._disconnected.done():
            self._disconnected.exception()

    def _break(self, error: Exception) -> None:
        """The connection is lost: those who wait for messages get an error."""
        if not self._disconnected.done():
            self._disconnected.set_exception(aiomqtt.MqttError(f"the connection broke: {error}"))
            self._disconnected.exception()  # told; asyncio need not warn that nobody asked
