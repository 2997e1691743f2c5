"""A small daemon for tests: starts real workers, drives them over their protocol, and sees all that they say."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from exoengine import protocol
from exoengine.protocol import (
    Aborted,
    Begin,
    CrossConnection,
    Finished,
    Form,
    Formed,
    FromWorker,
    GenerationRequest,
    Heartbeat,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    Prepare,
    Prepared,
    RequestFailed,
    Sampling,
    SyncSettings,
    TokenOut,
    ToWorker,
)  # fmt: skip

GENEROUS_S = 30.0
"""No test comes near it on a healthy machine; a hang fails instead of blocking the suite."""

M = TypeVar("M")

_PORTS = range(12_000, 32_000)
"""Below the ports that Linux gives to outgoing connections (32,768 on): one of those may be in use at any time."""

_begin = os.getpid() * 128 % len(_PORTS)
_ports = itertools.cycle((*_PORTS[_begin:], *_PORTS[:_begin]))
"""Two runs at once begin apart, and each comes round at the end instead of counting on above it."""


class Rank:
    """One worker process and the daemon's connection to it."""

    def __init__(
        self, folder: Path, name: str, orphan_deadline_s: float = 30.0, prelude: str = "",
        within: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`within` is what runs a command on the rank's host, where that is not this one."""
        self.path = folder / f"{name}.sock"
        self.log = (folder / f"{name}.log").open("ab")
        run = "from exoengine.worker import main; main()"
        self.process = subprocess.Popen(
            [
                *within, sys.executable, "-c", f"{prelude}\n{run}", "--socket", str(self.path),
                "--orphan-deadline-s", str(orphan_deadline_s),
            ],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
        )  # fmt: skip
        self.seen: list[FromWorker] = []
        self.fresh: queue.Queue[FromWorker | None] = queue.Queue()
        self.hello = self.connect()

    def connect(self) -> Hello:
        until = time.monotonic() + GENEROUS_S
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(str(self.path))
                break
            except OSError:
                self.socket.close()
                if time.monotonic() > until or self.process.poll() is not None:
                    raise
                time.sleep(0.02)
        self.fresh = queue.Queue()
        threading.Thread(target=self._read, args=(self.socket, self.fresh), daemon=True).start()
        return self.expect(Hello)

    def disconnect(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _read(self, connection: socket.socket, fresh: queue.Queue[FromWorker | None]) -> None:
        stream = connection.makefile("rb")
        with contextlib.suppress(OSError, ValueError):
            while header := stream.read(4):
                message = protocol.decode_from_worker(stream.read(int.from_bytes(header, "big")))
                self.seen.append(message)
                fresh.put(message)
        fresh.put(None)

    def send(self, message: ToWorker) -> None:
        self.socket.sendall(protocol.encode(message))

    def expect(
        self, *kinds: type[M], where: Callable[[Any], bool] = lambda _: True, within_s: float = GENEROUS_S
    ) -> M:
        """The next message of one of `kinds`; others are passed over, but stay in `seen`."""
        until = time.monotonic() + within_s
        while True:
            try:
                message = self.fresh.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                names = "/".join(kind.__name__ for kind in kinds)
                raise AssertionError(f"no {names} came; the last were {self.last_said()}") from None
            if message is None:
                raise AssertionError(f"the worker closed its connection; the last were {self.last_said()}")
            if isinstance(message, kinds) and where(message):
                return message

    def last_said(self) -> list[FromWorker]:
        return [message for message in self.seen if not isinstance(message, Heartbeat)][-4:]

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.process.pid, number)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.kill(signal.SIGCONT)
            self.kill()
        self.process.wait(GENEROUS_S)
        with contextlib.suppress(OSError):
            self.socket.close()
        self.log.close()


class Answer:
    """What one rank told of one request."""

    def __init__(self, messages: Sequence[FromWorker], request_id: str) -> None:
        mine = [message for message in messages if getattr(message, "request_id", None) == request_id]
        outs = [message for message in mine if isinstance(message, TokenOut)]
        first = outs[0].index if outs else 0
        assert [out.index for out in outs] == list(range(first, first + len(outs)))
        self.outs = outs
        self.tokens = [out.token for out in outs]
        finished = [message for message in mine if isinstance(message, Finished)]
        assert len(finished) <= 1
        self.finished = finished[0] if finished else None
        self.text = "".join(out.text for out in outs) + (self.finished.text if self.finished else "")


class Cluster:
    """Ranks of one plan, on loopback addresses of this machine or on `hosts`: how each runs a command, and its
    address.
    """

    def __init__(
        self, folder: Path, size: int, hosts: Sequence[tuple[Sequence[str], str]] = (), **options: Any
    ) -> None:
        self.folder, self.options = folder, options
        self.withins = [within for within, _ in hosts] or [()] * size
        self.addresses = [address for _, address in hosts] or ["127.0.0.1"] * size
        self.names = itertools.count()
        self.ranks = [self.start(rank) for rank in range(size)]
        self.plans = itertools.count()
        self.orders = itertools.count()
        self.plan: tuple[str, int] = ("", 0)
        self.loads: list[Load] = []

    def start(self, rank: int = 0) -> Rank:
        return Rank(self.folder, f"r{next(self.names)}", within=self.withins[rank], **self.options)

    @property
    def size(self) -> int:
        return len(self.ranks)

    def load(
        self, folder: Path, split: Sequence[int], sync: SyncSettings | None = None, **options: Any
    ) -> list[Loaded | LoadFailed]:
        """Loads on as many ranks as `split` has parts."""
        ends = list(itertools.accumulate(split))
        self.loads = [
            Load(str(folder), end - part, end, sync or SyncSettings(), **options)
            for part, end in zip(split, ends, strict=True)
        ]
        for rank, load in zip(self.ranks, self.loads, strict=False):
            rank.send(load)
        return [rank.expect(Loaded, LoadFailed) for rank, _ in zip(self.ranks, self.loads, strict=False)]

    def load_parts(
        self, folder: Path, parts: int, layers: int, sync: SyncSettings | None = None, **options: Any
    ) -> list[Loaded | LoadFailed]:
        """Loads all of the model's `layers` on `parts` ranks, of each layer one part on each."""
        self.loads = [
            Load(str(folder), 0, layers, sync or SyncSettings(), part=part, parts=parts, **options)
            for part in range(parts)
        ]
        for rank, load in zip(self.ranks, self.loads, strict=False):
            rank.send(load)
        return [rank.expect(Loaded, LoadFailed) for rank, _ in zip(self.ranks, self.loads, strict=False)]

    def load_stages(
        self, folder: Path, spans: Sequence[tuple[int, int]], parts: int, sync: SyncSettings | None = None
    ) -> list[Loaded | LoadFailed]:
        """Loads a pipeline whose stages are tensor groups of `parts` ranks each, of the layers in each span."""
        self.loads = [
            Load(str(folder), *span, sync or SyncSettings(), part=part, parts=parts)
            for span in spans
            for part in range(parts)
        ]
        for rank, load in zip(self.ranks, self.loads, strict=True):
            rank.send(load)
        return [rank.expect(Loaded, LoadFailed) for rank in self.ranks]

    def prepare(self, size: int | None = None) -> None:
        count = len(self.loads) if size is None else size
        self.plan = (f"plan{next(self.plans)}", 1)
        # A port each: macOS has 127.0.0.1 alone.
        hosts = tuple(f"{address}:{next(_ports)}" for address in self.addresses[:count]) if count > 1 else ()
        self.prepared_hosts = hosts
        for index, rank in enumerate(self.ranks[:count]):
            across = self._across(index, hosts) if any(load.parts > 1 for load in self.loads) else ()
            rank.send(Prepare(*self.plan, index, count, hosts, key=b"k" * 32, across=across))

    @staticmethod
    def _across(rank: int, hosts: Sequence[str]) -> tuple[CrossConnection, ...]:
        """A tensor group has a connection between each two ranks."""
        near = {rank, (rank + 1) % len(hosts), (rank - 1) % len(hosts)}
        return tuple(
            CrossConnection(other, rank < other, hosts[max(rank, other)], "")
            for other in range(len(hosts))
            if other not in near
        )

    def form(self, deadline_s: float = 20.0) -> list[Formed]:
        """The rendezvous as a daemon does it: Prepare to all, then Form to all, then Formed from all."""
        ranks = self.ranks[: len(self.loads)]
        self.prepare()
        for rank in ranks:
            rank.expect(Prepared, where=lambda said: (said.plan_hash, said.attempt) == self.plan)
        for rank in ranks:
            rank.send(Form(*self.plan, deadline_s))
        said = [rank.expect(Formed, Aborted, where=lambda said: said.plan_hash == self.plan[0]) for rank in ranks]
        assert all(isinstance(message, Formed) for message in said), said
        return [message for message in said if isinstance(message, Formed)]

    def begin(self, request: GenerationRequest) -> Begin:
        begin = Begin(next(self.orders), request)
        for rank in self.ranks[: len(self.loads)]:
            rank.send(begin)
        return begin

    def finish(self, request_id: str, within_s: float = GENEROUS_S) -> list[Answer | RequestFailed]:
        answers: list[Answer | RequestFailed] = []
        for rank in self.ranks[: len(self.loads)]:
            said = rank.expect(
                Finished, RequestFailed, where=lambda said: said.request_id == request_id, within_s=within_s
            )
            answers.append(said if isinstance(said, RequestFailed) else Answer(rank.seen, request_id))
        return answers

    def generate(self, request: GenerationRequest) -> Answer:
        """One request from beginning to end; all ranks must tell the same."""
        self.begin(request)
        answers = self.finish(request.request_id)
        first = answers[0]
        assert isinstance(first, Answer), first
        for other in answers[1:]:
            assert isinstance(other, Answer), other
            assert (other.tokens, other.text) == (first.tokens, first.text)
        return first

    def close(self) -> None:
        for rank in self.ranks:
            rank.close()


_request_numbers = itertools.count()


def request(
    prompt: Sequence[int] | str, max_tokens: int, stop: Sequence[str] = (), **sampling: Any
) -> GenerationRequest:
    return GenerationRequest(
        request_id=f"q{next(_request_numbers)}",
        max_tokens=max_tokens,
        prompt=prompt if isinstance(prompt, str) else tuple(prompt),
        stop=tuple(stop),
        sampling=Sampling(**sampling),
    )


@contextlib.contextmanager
def cluster(folder: Path, size: int, **options: Any) -> Iterator[Cluster]:
    made = Cluster(folder, size, **options)
    try:
        yield made
    finally:
        made.close()


__all__ = ["Answer", "Cluster", "Heartbeat", "Rank", "cluster", "request"]
