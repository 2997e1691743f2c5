"""The life of this rank's MLX group: form, abort, leave, form again. Sole owner of `mx.distributed.init`.

What MLX's ring does by itself is described in rendezvous.py and cannot be lived with, so `init` runs against
this machine alone: it accepts a connection of connector.py and connects to a port of ours, which takes
milliseconds, never waits for a network, and cannot be reached from it. Then the real connections, made and proven
by rendezvous.py, take the place of those two under the same descriptor numbers (`dup2`). The ring's own threads
know nothing but the numbers.

MLX's own connections do not block, and a thread that waits for a hidden state keeps a core at 100%. The real ones
block: hidden states and tokens only ever go to the right, so the thread of a connection either receives or sends,
and has nothing to do meanwhile. Safe steps use the same connections without MLX (dataring.py); its threads ask them
for nothing then.

An abort shuts the real connections down, from any thread: whoever waits on one gets an error within
milliseconds, a collective inside MLX as well. After an error nothing touches the group again; it is dropped with
the exported C++ function that clears MLX's backends, and the next one is formed in the same process.

Rule for users of `handle`: no graph may hold two operations on one direction of the ring. A socket that failed
inside MLX leaves its thread dead, and a second operation queued on it would hang for ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import mlx.core as mx

from exoengine.ring.hidden_states import DataRing
from exoengine.ring.message_ring import TokenRing
from exoengine.ring.rendezvous import Edges, FormError, RingPlan, meet

CLEAR_BACKENDS: Final = "_ZN3mlx4core11distributed14clear_backendsEv"
"""mlx::core::distributed::clear_backends(), exported by libmlx on Linux and macOS, not known to its Python API."""

INIT_ALARM_S: Final = 5.0
"""MLX's `init` against this machine takes about 15 ms; past this a signal makes its `accept` fail."""

INIT_ATTEMPTS: Final = 3
"""Another process may take the port between our choice and MLX's use of it; three times in a row it will not."""

MOST_ERRORS: Final = 8
"""More than there can be operations on the ring under way."""

LOOPBACK: Final = "127.0.0.1"


def clear_backends_function() -> Any:
    """The function that makes MLX forget its groups, or None where this MLX does not export it."""
    for folder in (Path(mx.__file__).parent / "lib", Path(mx.__file__).parent):
        for name in ("libmlx.so", "libmlx.dylib"):
            if (folder / name).is_file():
                with contextlib.suppress(OSError, AttributeError):
                    return getattr(ctypes.CDLL(str(folder / name)), CLEAR_BACKENDS)
    return None


class Connector:
    """The process of connector.py. Start it before MLX is imported, while this process is small."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("connector.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script)], stdin=subprocess.PIPE, text=True, close_fds=True
        )

    def connect(self, port: int) -> None:
        """0 lets go. Raises FormError where the process is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{port}\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise FormError("connector", "the helper process that connects MLX's ring is gone") from error

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.kill()  # it holds nothing but a loopback connection
        self._process.wait()


@dataclasses.dataclass(frozen=True)
class AbortReason:
    """`code` is stable, `text` is one line for people."""

    code: str
    text: str


class RingGroup:
    """At most one group at a time. All methods but `abort` belong to the MLX thread."""

    def __init__(self, connector: Connector, hostfile: Path) -> None:
        """`hostfile` is where MLX is told its hosts, for the milliseconds of its `init`: always the same one, so
        that processes that are killed meanwhile leave no more than that.
        """
        self._connector, self._hostfile = connector, hostfile
        self._clear = clear_backends_function()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._abort_reason: AbortReason | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._used = False
        self.handle: Any = None
        """MLX's group; None with a single rank. Never kept in a variable: it must die when the group is left."""
        self.tokens: TokenRing | None = None
        """The small messages of this group; None with a single rank."""
        self.data: DataRing | None = None
        """Its hidden states and drawn tokens, outside MLX; None with a single rank."""

    @property
    def can_reform(self) -> bool:
        """Can another group be formed in this process?"""
        return self._clear is not None or not self._used

    @property
    def wake(self) -> socket.socket:
        """Becomes readable at an abort and at `wake_up`: for whoever waits in a select on the MLX thread."""
        return self._wake_read

    @property
    def abort_reason(self) -> AbortReason | None:
        """Why the present group was aborted; `leave` forgets it."""
        return self._abort_reason

    def wake_up(self) -> None:
        """From any thread: makes `wake` readable."""
        with contextlib.suppress(BlockingIOError):
            self._wake_write.send(b"\0")

    def drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass

    def abort(self, code: str, text: str) -> None:
        """From any thread, at any time: the group that exists or is being formed ends with an error."""
        with self._lock:
            if self._abort_reason is None:
                self._abort_reason = AbortReason(code, text)
            for connection in self._sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.wake_up()

    def form(self, plan: RingPlan, deadline: float) -> None:
        """Leaves the present group and forms that of `plan` by `deadline` (monotonic). Raises FormError, and
        the caller must then `leave`.
        """
        self.leave()
        if plan.size == 1:
            return
        if not self.can_reform:
            raise FormError("cannot_reform", "this MLX cannot form a second group in one process")
        edges = meet(plan, deadline, self._called_off, self._wake_read)
        with self._lock:
            self._sockets = edges.all()
        reason = self._called_off()
        if reason is not None:
            raise FormError("aborted", reason)
        self._put_under_mlx(plan, edges)
        edges.control_left.setblocking(True)
        edges.control_right.setblocking(True)
        self.tokens = TokenRing(plan.rank, plan.size, edges.control_left, edges.control_right)
        self.data = DataRing(edges.data_left, edges.data_right)

    def _called_off(self) -> str | None:
        return self._abort_reason.text if self._abort_reason is not None else None

    def leave(self) -> None:
        """Drops the group, dead or alive, with its connections."""
        if self.tokens is not None:
            self.tokens.close()
        self.handle = self.tokens = self.data = None
        with self._lock:
            sockets, self._sockets = self._sockets, []
            self._abort_reason = None
        self.drain_wake()
        for connection in sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        if self._used and self._clear is not None:
            _let_finish()
            gc.collect()
            self._clear()

    def close(self) -> None:
        self.leave()
        self._connector.close()

    def _put_under_mlx(self, plan: RingPlan, edges: Edges) -> None:
        for attempt in range(INIT_ATTEMPTS):
            try:
                left, right = self._init(plan)
                break
            except (OSError, RuntimeError, ValueError) as error:
                if attempt + 1 == INIT_ATTEMPTS:
                    raise FormError("mlx_init", f"MLX could not set up its ring: {error}") from error
        for number, connection in ((left, edges.data_left), (right, edges.data_right)):
            connection.setblocking(True)  # or MLX's thread would spin on it; each carries one direction only
            os.dup2(connection.fileno(), number, inheritable=False)
        self._connector.connect(0)

    def _init(self, plan: RingPlan) -> tuple[int, int]:
        """Runs MLX's `init` against this machine; gives the descriptors of its left and right connections."""
        accepts_at = _free_port()
        with socket.socket() as listener:
            listener.bind((LOOPBACK, 0))
            listener.listen(1)
            connects_to = listener.getsockname()[1]
            hosts = [[f"{LOOPBACK}:{connects_to}"] for _ in range(plan.size)]
            hosts[plan.rank] = [f"{LOOPBACK}:{accepts_at}"]
            self._hostfile.write_text(json.dumps(hosts))
            os.environ["MLX_HOSTFILE"], os.environ["MLX_RANK"] = str(self._hostfile), str(plan.rank)
            self._connector.connect(accepts_at)
            self._used = True
            try:
                with _alarm(INIT_ALARM_S):
                    self.handle = mx.distributed.init(strict=True, backend="ring")
            finally:
                del os.environ["MLX_HOSTFILE"], os.environ["MLX_RANK"]
                self._hostfile.unlink(missing_ok=True)
            return _find_descriptors(accepts_at, connects_to)


def _let_finish() -> None:
    """Waits until MLX has nothing under way. An error that an aborted evaluation left in its stream is raised by
    the next call, which then waits for nothing; so until there is none.
    """
    for _ in range(MOST_ERRORS):
        try:
            mx.synchronize(mx.cpu)
            return
        except RuntimeError:
            continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _alarm(after_s: float) -> Iterator[None]:
    """A signal interrupts the system call that MLX waits in, which makes MLX raise. Main thread only."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, after_s, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _find_descriptors(accepts_at: int, connects_to: int) -> tuple[int, int]:
    """MLX's two connections among all descriptors of this process. Raises RuntimeError where they are not."""
    left = right = -1
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                peer, own = connection.getpeername(), connection.getsockname()
            if own == (LOOPBACK, accepts_at):
                left = int(name)
            elif peer == (LOOPBACK, connects_to):
                right = int(name)
    if left < 0 or right < 0:
        raise RuntimeError("the ring's connections were not found among the descriptors")
    return left, right
