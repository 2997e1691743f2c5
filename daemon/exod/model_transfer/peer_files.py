"""Asks other nodes for files of a model, from the process of a download.

Each connection is bound to the interface and address of the path that its pair uses, as the daemon says it; when
the daemon names another path, what runs over the old one is ended at once and goes on over the new one. Which file
comes from whom is `core/models/source_choice.py`. Sizes in bytes, times in seconds. Raises OSError and FrameError
for what another try may mend, RefusedError where the node said no.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from exod.model_transfer.transfer_messages import (
    PIECE_BYTES,
    AskBytes,
    AskFiles,
    Bytes,
    Files,
    Hashing,
    Refused,
    ask_over,
    problem_of,
    receive_answer,
    send,
    shut,
)
from exoengine.framing import FrameError
from exoengine.interface_binding import bind_where_allowed

CONNECT_S: Final = 3.0
"""On a path that was measured to work; a handshake takes milliseconds."""

SILENCE_S: Final = 6.0
"""Between two pieces. A node that reads its files to tell their hashes says so every two seconds."""

POLL_S: Final = 0.5
"""How often a node is asked what it has, while it may still be fetching it itself."""


class RefusedError(Exception):
    """The node does not give it; the text is the node's."""


class FileSource(msgspec.Struct, frozen=True):
    """A node, and the way to its files. An empty `local` leaves the way to the route table."""

    node: str
    name: str
    local: str
    interface: str
    remote: str
    port: int


class Credentials(msgspec.Struct, frozen=True):
    """PEM texts: the cluster's authority, and this node's certificate with its key."""

    authority: str
    chain: str


def client_context(credentials: Credentials, load_chain: Callable[[ssl.SSLContext, bytes], None]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # who answers stands in its certificate's common name
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=credentials.authority)
    load_chain(context, credentials.chain.encode())
    return context


class FileConnection:
    """One connection to one node; a context manager."""

    def __init__(self, source: FileSource, context: ssl.SSLContext, who: Callable[[ssl.SSLObject], str]) -> None:
        self.source = source
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_S)
            if source.local:
                bind_where_allowed(sock, source.interface)
                sock.bind((source.local, 0))
            sock.connect((source.remote, source.port))
            self._sock = context.wrap_socket(sock)
        except BaseException:
            sock.close()
            raise
        try:
            if who(self._sock) != source.node:  # type: ignore[arg-type]  # has the same getpeercert
                raise ConnectionAbortedError(f"{source.remote}:{source.port} is not {source.name}")
            self._stream = ask_over(self._sock)
            self._sock.settimeout(SILENCE_S)
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> FileConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def end(self) -> None:
        """From another thread."""
        shut(self._sock)

    def files(self, model: str, waits: Callable[[], None]) -> Files:
        """`waits` is called while the node reads its files."""
        send(self._stream, AskFiles(model))
        while True:
            match receive_answer(self._stream):
                case Files() as files:
                    if problem := problem_of(files):
                        raise RefusedError(problem)
                    return files
                case Hashing():
                    waits()
                case Refused(text=text):
                    raise RefusedError(text)
                case _:
                    raise FrameError("it answers what was not asked")

    def receive(self, model: str, name: str, offset: int, size: int, take: Callable[[memoryview], None]) -> None:
        """Gives `take` the bytes from `offset` on. A node that announces another size lies."""
        send(self._stream, AskBytes(model, name, offset))
        match receive_answer(self._stream):
            case Bytes(count=count) if count == size - offset:
                pass
            case Bytes(count=count):
                raise RefusedError(f"it has {offset + count} bytes of {name} instead of {size}")
            case Refused(text=text):
                raise RefusedError(text)
            case _:
                raise FrameError("it answers what was not asked")
        buffer = memoryview(bytearray(PIECE_BYTES))
        while count:
            filled = 0
            while filled < min(PIECE_BYTES, count):
                got = self._stream.recv_into(buffer[filled : min(PIECE_BYTES, count)])
                if not got:
                    take(buffer[:filled])
                    raise ConnectionResetError(f"{self.source.name} ended in the middle of {name}")
                filled += got
            take(buffer[:filled])
            count -= filled


class FileSources:
    """The nodes that may have files of one model, and what each said last. Used from many threads."""

    def __init__(
        self, model: str, connect: Callable[[FileSource], FileConnection], waits: Callable[[], None] = lambda: None
    ) -> None:
        self._model, self._connect, self._waits = model, connect, waits
        self._lock = threading.Lock()
        self._sources: dict[str, FileSource] = {}
        self._offers: dict[str, Files] = {}
        self._answered: set[str] = set()
        self._open: set[FileConnection] = set()

    def follow(self, sources: tuple[FileSource, ...]) -> None:
        """These are the nodes and paths now."""
        with self._lock:
            before, self._sources = self._sources, {source.node: source for source in sources}
            fresh = [source for source in sources if before.get(source.node) != source]
            gone = [one for one in self._open if self._sources.get(one.source.node) != one.source]
            for node in [node for node in self._offers if node not in self._sources]:
                del self._offers[node]
        for connection in gone:
            connection.end()
        for source in fresh:
            threading.Thread(target=self._ask_again, args=(source,), daemon=True).start()

    def offers(self) -> dict[str, Files]:
        with self._lock:
            return {node: self._offers[node] for node in self._sources if node in self._offers}

    def names(self) -> dict[str, str]:
        with self._lock:
            return {source.node: source.name for source in self._sources.values()}

    def forget_answers(self) -> None:
        """What they say from now on counts."""
        with self._lock:
            self._answered.clear()

    def all_answered(self) -> bool:
        with self._lock:
            return all(node in self._answered for node in self._sources)

    @contextlib.contextmanager
    def connected(self, node: str) -> Iterator[FileConnection]:
        """A new connection over the path of now. Raises OSError where the node is gone."""
        with self._lock:
            source = self._sources.get(node)
        if source is None:
            raise ConnectionResetError(f"{node} is not reached any more")
        with self._connect(source) as connection:
            with self._lock:
                self._open.add(connection)
                if self._sources.get(node) != source:
                    connection.end()
            try:
                yield connection
            finally:
                with self._lock:
                    self._open.discard(connection)

    def _ask_again(self, source: FileSource) -> None:
        """Until another path, or none, leads to the node."""
        pause = threading.Event()
        while self._is_current(source):
            try:
                with self.connected(source.node) as connection:
                    while self._is_current(source):
                        self._note(source, connection.files(self._model, self._waits))
                        pause.wait(POLL_S)
            except RefusedError:
                self._note(source, None)
            except (OSError, FrameError):
                self._note(source, None)
            pause.wait(POLL_S)

    def _is_current(self, source: FileSource) -> bool:
        with self._lock:
            return self._sources.get(source.node) == source

    def _note(self, source: FileSource, files: Files | None) -> None:
        with self._lock:
            self._answered.add(source.node)
            if files is None:
                self._offers.pop(source.node, None)
            elif self._sources.get(source.node) == source:
                self._offers[source.node] = files
