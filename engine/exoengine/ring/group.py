"""The life of this rank's group: form, abort, leave, form again, any number of times in one process.

rendezvous.py makes the connections to both neighbours and proves them. Those for graphs go to the native group
(`exoengine/native`), which MLX's operations use; the others stay here, for messages and for what safe steps send.

An operation of the native group never raises and never stays pending. Where it fails it leaves zeros and is
counted, and so does every later one. So after the evaluation of a graph `check` must be called before anything of
the result leaves this rank. An abort, from any thread, ends every wait within milliseconds, inside MLX too.

Without the native group there is no `handle`, and every step must be safe: `no_graphs` says why. Where the plan
says so a group over RDMA takes the native group's place (rdma.py). An abort cannot reach what waits in it: it ends
the connections beside it, and the process must then be ended from outside. Decides nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time
from typing import Any, Final

from exoengine.native.module import NativeModule
from exoengine.protocol import NO_EDGES, EdgeCosts, RdmaSetup
from exoengine.ring import edge_costs, further_cables, rdma
from exoengine.ring.edge_proof import Seen, tell_nobody
from exoengine.ring.further_cables import Neighbour
from exoengine.ring.hidden_states import DataRing
from exoengine.ring.message_ring import RingLostError, TokenRing
from exoengine.ring.rendezvous import Edges, meet
from exoengine.ring.ring_plan import Cable, FormError, RdmaError, RingPlan, split_host
from exoengine.ring.send_queue import SendWatch

SPIN_US: Final = 1000
"""A wait inside a graph asks its connection over and over for so long before it sleeps, unless waits turn out to be
longer. A sum over a cable takes 200 to 300 microseconds, and whoever sleeps is woken late. Between two questions it
yields its core: without that two ranks on two busy cores took 90 to 150 microseconds for a sum of 2 KiB.
docs/benchmarks.md compares 50, 300 and 1000.
"""

FEW_CORES: Final = 4
"""With fewer of them, someone else mostly wants the core, and a wait is awake for `FEW_CORES_SPIN_US`: on two busy
ones the tests of two and four ranks took a fifth to a third longer with 1000."""
FEW_CORES_SPIN_US: Final = 50

HAS_GRAPHS: Final = 1
"""The native group."""
HAS_CABLES: Final = 2
"""Further cables to the one that is told."""

SPENT: Final = "spent"
"""Said in place of a session's name: this process is in a group over RDMA of other ranks, or other cables."""

ALL_SEALED: Final = 'mesh.seal = "all": what goes inside graphs carries no MAC'


@dataclasses.dataclass(frozen=True)
class AbortReason:
    """`code` is stable, `text` is one line for people."""

    code: str
    text: str


class RingGroup:
    """At most one group at a time. All methods but `abort` and `wake_up` belong to the MLX thread."""

    def __init__(self, native: NativeModule) -> None:
        self._native = native
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._control: Any = None
        self._senders: list[socket.socket] = []
        self._further: list[socket.socket] = []
        self._watch, self._further_watch = SendWatch(), SendWatch()
        self._graph_wait_s = 0.0
        self._neighbours: dict[int, int] = {}
        """What each neighbour said before graphs begin: whether it has the native group, and further cables."""
        self._measuring_ns = 0
        """What was waited while the edges were measured: no step's."""
        self._abort_reason: AbortReason | None = None
        self._session: rdma.Session | None = None
        """Of this process; it outlives the group."""
        self.over_rdma = False
        """Does this group communicate over RDMA inside graphs, or is it about to?"""
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self.handle: Any = None
        """The group for MLX's operations; None with a single rank, and without the native group."""
        self.no_graphs = ""
        """Why nothing of this group may be sent or received inside a graph; empty where it may."""
        self.tokens: TokenRing | None = None
        """The small messages of this group; None with a single rank."""
        self.edge_costs: EdgeCosts = NO_EDGES
        """What a sum over this rank's edges took when the group was formed."""
        self.data: DataRing | None = None
        """What safe steps send and receive, outside MLX; None with a single rank."""

    @property
    def wake(self) -> socket.socket:
        """Becomes readable at an abort and at `wake_up`, for a select on the MLX thread."""
        return self._wake_read

    @property
    def abort_reason(self) -> AbortReason | None:
        """Why the present group was aborted; `leave` forgets it."""
        return self._abort_reason

    @property
    def is_deaf(self) -> bool:
        """Does it play what JACCL does: a process that waits there does not act on SIGTERM?"""
        session = self._session
        return self.over_rdma and session is not None and session.setup.stand_in

    @property
    def further_cables(self) -> int:
        """How many cables beside those of its edges this rank's graphs use."""
        return len(self._further)

    def of_parts(self, rank: int, parts: int) -> Any:
        """The group of the ranks that have the parts of the same layers as `rank`, this one; None where there are
        no graphs.
        """
        size = self.tokens.size if self.tokens is not None else 1
        if self.handle is None or parts == size:
            return self.handle
        first = rank // parts * parts
        return self._control.among(list(range(first, first + parts)))

    @property
    def waited_s(self) -> float:
        """How long receives and collectives inside graphs took so far in this group: what a GPU waited for."""
        return (self._control.waited_ns - self._measuring_ns) / 1e9 if self._control is not None else 0.0

    def allow_wait(self, already_s: float = 0.0) -> None:
        """A graph begins, or goes on that has waited `already_s`: what it waits for its peers is limited in all."""
        if self._control is not None:
            self._control.allow(self._graph_wait_s - already_s)

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
            if self._control is not None:
                self._control.abort()
            for connection in self._sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.wake_up()

    def stalled(self) -> float | None:
        """From any thread: for how long the right neighbour's machine has acknowledged nothing of what was sent;
        None where nothing is amiss.
        """
        with self._lock:
            if self._abort_reason is not None:
                return None
            return self._watch.stalled(self._senders, time.monotonic())

    def stalled_cable(self) -> float | None:
        """The same of the further cables."""
        with self._lock:
            if self._abort_reason is not None:
                return None
            return self._further_watch.stalled(self._further, time.monotonic())

    @property
    def waited_too_long(self) -> bool:
        """Did an operation inside a graph reach its deadline? Known until the group is left."""
        return self._control is not None and bool(self._control.failed) and "deadline" in self._control.reason

    def check(self) -> None:
        """Raises RingLostError where an operation inside a graph failed, or the group was aborted: what was
        evaluated last may be of zeros then, and must not leave this rank.
        """
        if self._abort_reason is not None:
            raise RingLostError(self._abort_reason.text)
        if self._control is not None and self._control.failed:
            raise RingLostError(f"an operation inside a graph failed: {self._control.reason}")

    def form(
        self,
        plan: RingPlan,
        deadline: float,
        graph_wait_s: float,
        seen: Seen = tell_nobody,
        *,
        thorough: bool = False,
    ) -> None:
        """Leaves the present group and forms that of `plan` by `deadline` (monotonic). The operations of one graph
        wait no longer than `graph_wait_s` in all. `seen` gets what happens on the edges, which are proven with more
        bytes where it is `thorough`. Raises FormError, and the caller must then `leave`.
        """
        self.leave()
        if plan.size == 1:
            return
        edges = meet(plan, deadline, self._called_off, self._wake_read, seen, thorough=thorough)
        with self._lock:
            self._sockets, self._senders = edges.all(), edges.to_right
        reason = self._called_off()
        if reason is not None:
            raise FormError("aborted", reason)
        for connection in edges.all():
            connection.setblocking(True)
        left, right = edges.control_left, edges.control_right
        self.tokens = TokenRing(plan.rank, plan.size, left, right, edges.keys[left], edges.keys[right])
        left, right = edges.data_left, edges.data_right
        self.data = DataRing(left, right, edges.keys[left], edges.keys[right])
        if plan.rdma is not None:
            self._enter_rdma(plan, plan.rdma)
        else:
            self._make_native(plan, edges, graph_wait_s, deadline)
            self._measure_edges(plan, deadline)
        if plan.all_sealed:  # measured like the others, which may have graphs
            self.handle, self.no_graphs = None, ALL_SEALED

    def _enter_rdma(self, plan: RingPlan, setup: RdmaSetup) -> None:
        """The group over RDMA that all ranks are in already, or a new one where none of them is in any."""
        held, mine = self._session, ""
        if held is not None:
            mine = held.name if (held.setup, held.rank) == (setup, plan.rank) else SPENT
        assert self.tokens is not None
        try:
            names = {name.decode() for name in self.tokens.gather(mine.encode())}
        except RingLostError as error:
            raise FormError("edge", str(error)) from error
        if len(names) > 1 or names == {SPENT}:
            raise FormError(
                "rdma_spent" if held is not None else "rdma_others",
                "MLX gives a process one group over RDMA, and not all ranks have the same: those that have one are "
                "replaced",
            )
        self.over_rdma = True
        if held is None:
            try:
                handle = rdma.join(setup, plan.rank, self._native.get())
            except (RdmaError, RuntimeError) as error:
                raise FormError("rdma", f"no group over RDMA: {error}") from error
            held = self._session = rdma.Session(f"{plan.plan_hash}:{plan.attempt}", setup, plan.rank, handle)
        costs = edge_costs.measure_all(held.handle)
        with self._lock:
            self.handle, self._control = held.handle, rdma.RdmaControl()
        self.edge_costs, self._measuring_ns = costs, 0

    def _make_native(self, plan: RingPlan, edges: Edges, graph_wait_s: float, deadline: float) -> None:
        module = self._native.get()
        self.no_graphs = self._native.why_not
        has = HAS_GRAPHS if module is not None else 0
        self._neighbours = _introduce(edges, plan, has, deadline)
        if module is None:
            return
        ends = {plan.left: [edges.graph_left], plan.right: [edges.graph_right]}
        if plan.left == plan.right:  # both ends must name the two in the same order
            both = [edges.graph_right, edges.graph_left]
            ends = {plan.left: both if plan.rank == 0 else both[::-1]}
        ends |= {peer: [connection] for peer, connection in edges.across.items()}
        for peer, further in self._further_cables(plan, edges, deadline).items():
            ends[peer] += further
        numbers = {peer: [end.fileno() for end in each] for peer, each in ends.items()}
        handle, control = module.make(plan.rank, plan.size, numbers, spin_us(), graph_wait_s)
        with self._lock:
            self.handle, self._control, self._graph_wait_s = handle, control, graph_wait_s
            if self._abort_reason is not None:
                control.abort()  # it came while the group was made

    def _further_cables(self, plan: RingPlan, edges: Edges, deadline: float) -> dict[int, list[socket.socket]]:
        """By neighbour. Pairs take their turn in one order on all ranks, so none waits for another over a third."""
        made: dict[int, list[socket.socket]] = {}
        for peer in sorted(self._neighbours, key=lambda peer: tuple(sorted((plan.rank, peer)))):
            cables = _cables_to(plan, peer)
            if not cables or self._neighbours[peer] != HAS_GRAPHS | HAS_CABLES:
                continue
            edge = edges.graph_right if _is_edge_to_right(plan, peer) else edges.graph_left
            neighbour = Neighbour(peer, edge, edges.keys[edge], cables)
            if plan.rank < peer:
                made[peer] = further_cables.connect(neighbour, deadline)
            else:
                port = split_host(plan.hosts[plan.rank])[1]
                made[peer] = further_cables.accept(neighbour, port, deadline, self._called_off)
            edge.setblocking(True)
            with self._lock:
                self._sockets = [*self._sockets, *made[peer]]
                self._further = [*self._further, *made[peer]]
            for connection in made[peer]:
                connection.setblocking(True)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def _measure_edges(self, plan: RingPlan, deadline: float) -> None:
        """Its neighbours may still wait for their other ones: they are given as long as the group. A neighbour
        without the native group measures nothing, and is not waited for.
        """
        self.edge_costs, self._measuring_ns = NO_EDGES, 0
        peers = [
            peer for peer in edge_costs.order(plan.rank, plan.size) if self._neighbours.get(peer, 0) & HAS_GRAPHS
        ]
        if self._control is None or not peers:
            return
        self._control.wait(max(0.0, deadline - time.monotonic()))
        costs = edge_costs.measure(self._control, peers)
        self._control.wait(self._graph_wait_s)
        try:
            self.check()
        except RingLostError as error:
            raise FormError("edge", str(error)) from error
        self.edge_costs, self._measuring_ns = costs, self._control.waited_ns

    def _called_off(self) -> str | None:
        return self._abort_reason.text if self._abort_reason is not None else None

    def leave(self) -> None:
        """Drops the group, dead or alive, with its connections. What MLX still has under way ends by itself."""
        if self.tokens is not None:
            self.tokens.close()
        self.handle = self.tokens = self.data = None
        self.no_graphs, self.over_rdma = "", False
        with self._lock:
            sockets, self._sockets, self._senders, self._further = self._sockets, [], [], []
            control, self._control = self._control, None
            self._abort_reason = None
        if control is not None:
            control.abort()
        self.drain_wake()
        for connection in sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def _cables_to(plan: RingPlan, peer: int) -> tuple[Cable, ...]:
    return tuple(cable for cable in plan.cables if cable.peer == peer)[: further_cables.MAX_CABLES]


def _is_edge_to_right(plan: RingPlan, peer: int) -> bool:
    """Of two ranks, which have two edges, both take the one from the lower to the higher."""
    return plan.right == peer and (plan.left != peer or plan.rank < peer)


def spin_us() -> int:
    """How long a wait inside a graph may be awake on this machine, in microseconds."""
    return SPIN_US if (os.cpu_count() or 1) >= FEW_CORES else FEW_CORES_SPIN_US


def _introduce(edges: Edges, plan: RingPlan, has: int, deadline: float) -> dict[int, int]:
    """What this rank's neighbours have. Each end of a connection for graphs says it in one byte before anything
    else. Raises FormError where one does not by `deadline` (monotonic).
    """
    ends = [(plan.left, edges.graph_left), (plan.right, edges.graph_right)]
    found: dict[int, int] = {}
    try:
        for peer, connection in ends:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            connection.sendall(bytes([has | (HAS_CABLES if has and _cables_to(plan, peer) else 0)]))
        for peer, connection in ends:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            said = connection.recv(1)
            if not said:
                raise FormError("edge", "a neighbour left while the group was formed")
            found[peer] = said[0]
            connection.setblocking(True)
    except OSError as error:
        raise FormError("edge", f"a neighbour did not say whether it has the native group: {error}") from error
    return found
