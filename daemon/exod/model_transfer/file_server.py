"""Gives files of models to other nodes of the cluster: a listener of its own, and a thread for each connection.

Who connects must prove to be of the cluster (the control plane's TLS), and be connected to this node's control
plane just now: a node that it refuses gets no file either. Reading, encrypting and sending happen in threads, never
on the event loop. Bounded: connections in all and for each node; the oldest one of a node gives way, for a
receiver that lost its cable comes again before the kernel notices. Decides which question is answered; where a
file lies is `model_places.py`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from exod.errors import TrustError
from exod.model import NodeId
from exod.model_transfer.model_places import Offers
from exod.model_transfer.sealed_stream import SealedStream
from exod.model_transfer.transfer_messages import (
    PIECE_BYTES,
    AskBytes,
    AskFiles,
    Bytes,
    Hashing,
    Question,
    Refused,
    answer_over,
    is_file_name,
    is_model_name,
    receive_question,
    send,
    shut,
)
from exod.peers.trust import peer_id
from exoengine.framing import FrameError

log = structlog.get_logger()

MAX_CONNECTIONS: Final = 32
MAX_PER_NODE: Final = 8
"""A receiver has five: one to ask for lists, and four files at once."""

HANDSHAKE_S: Final = 5.0
IDLE_S: Final = 60.0
"""Between two questions, and for a receiver that takes nothing. It asks for the list once a second, and a thread
that waits for longer than this waits for nobody."""

HASHING_EVERY_S: Final = 2.0


class FileServer:
    """`context` gives the TLS of the cluster's key of now. `accepted` takes each connection on the event loop.
    `is_member(node)`: is it connected now? Both are called from threads.
    """

    def __init__(
        self, context: Callable[[], ssl.SSLContext], offers: Offers, is_member: Callable[[NodeId], bool]
    ) -> None:
        self._context, self._offers, self._is_member = context, offers, is_member
        self._lock = threading.Lock()
        self._open: dict[socket.socket, NodeId | None] = {}
        """Oldest first. None: not known yet."""
        self._closed = False
        self.sent_bytes = 0

    def accepted(self, sock: socket.socket, source: str) -> None:
        with self._lock:
            if self._closed or (len(self._open) >= MAX_CONNECTIONS and not self._drop_a_stranger()):
                sock.close()
                return
            self._open[sock] = None
        threading.Thread(target=self._serve, args=(sock,), name=f"files for {source}", daemon=True).start()

    def _drop_a_stranger(self) -> bool:
        """The oldest that has not proved to be of the cluster: a member is through in milliseconds."""
        stranger = next((one for one, node in self._open.items() if node is None), None)
        if stranger is None:
            return False
        del self._open[stranger]
        shut(stranger)
        return True

    def open(self) -> None:
        """Takes connections, also after `close`."""
        self._closed = False

    def close(self) -> None:
        """Ends every connection."""
        with self._lock:
            self._closed = True
            for sock in self._open:
                shut(sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            sock.settimeout(HANDSHAKE_S)
            with self._context().wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as stream:
                self._rename(sock, stream)
                stream.do_handshake()
                peer = peer_id(stream)  # type: ignore[arg-type]  # has the same getpeercert
                self._known(stream, peer)
                sealed = answer_over(stream)
                stream.settimeout(IDLE_S)
                self._answer_all(sealed, peer)
        except (OSError, FrameError, TrustError) as error:
            log.debug("file_connection_ended", error=str(error))
        except Exception as error:
            log.error("internal_error", task="file server", exc_info=error)
        finally:
            sock.close()
            with self._lock:
                for one in [one for one in self._open if one.fileno() < 0]:
                    del self._open[one]

    def _rename(self, sock: socket.socket, stream: ssl.SSLSocket) -> None:
        """The wrapped socket has taken the descriptor over."""
        with self._lock:
            self._open.pop(sock, None)
            self._open[stream] = None

    def _known(self, stream: ssl.SSLSocket, peer: NodeId) -> None:
        with self._lock:
            self._open[stream] = peer
            same = [one for one, node in self._open.items() if node == peer]
            for oldest in same[: max(0, len(same) - MAX_PER_NODE)]:
                shut(oldest)

    def _answer_all(self, stream: SealedStream, peer: NodeId) -> None:
        while (question := receive_question(stream)) is not None:
            if not self._is_member(peer):
                send(stream, Refused("not_a_member", "this node is not connected to you"))
                return
            self._answer(stream, question)

    def _answer(self, stream: SealedStream, question: Question) -> None:
        if not is_model_name(question.model):
            send(stream, Refused("not_here", "that is no model's name"))
            return
        match question:
            case AskFiles(model=model):
                self._tell_files(stream, model)
            case AskBytes(model=model, name=name, offset=offset):
                self._send_file(stream, model, name, offset)

    def _tell_files(self, stream: SealedStream, model: str) -> None:
        told = [time.monotonic()]

        def hashing(name: str) -> None:
            if time.monotonic() - told[0] > HASHING_EVERY_S:
                told[0] = time.monotonic()
                send(stream, Hashing(name))

        try:
            files = self._offers.files(model, hashing)
        except OSError as error:
            send(stream, Refused("not_here", f"{error.filename} cannot be read: {error.strerror}"))
            return
        send(stream, files or Refused("not_here", f"{model} is not here"))

    def _send_file(self, stream: SealedStream, model: str, name: str, offset: int) -> None:
        path = self._offers.path(model, name) if is_file_name(name) else None
        if path is None:
            send(stream, Refused("not_here", f"{name[:200]!r} of {model} is not here"))
            return
        self._copy(stream, path, offset)

    def _copy(self, stream: SealedStream, path: Path, offset: int) -> None:
        with contextlib.ExitStack() as closing:
            try:
                file = closing.enter_context(path.open("rb", buffering=0))
                size = file.seek(0, 2)
                file.seek(min(max(offset, 0), size))
            except OSError as error:
                send(stream, Refused("not_here", f"{path.name} cannot be read: {error.strerror}"))
                return
            left = size - file.tell()
            send(stream, Bytes(left))
            piece = memoryview(bytearray(PIECE_BYTES))
            while left:
                count = file.readinto(piece[: min(left, PIECE_BYTES)])
                if not count:
                    raise ConnectionAbortedError(f"{path} became shorter while it was sent")
                stream.sendall(piece[:count])
                left -= count
                self.sent_bytes += count
