"""The checks that run before inference: each edge of the plan, and what all ranks must have in common.

Each node checks the edges that start at it, its own port, memory and packages; the one that is asked collects the
others' answers. Every check gives a figure, and a failed one its cure. It measures and reports: it neither stops a
rank nor changes a plan.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from typing import Final, Protocol

import psutil
import structlog

from exod.core.engine.engine_messages import RankPhase
from exod.core.engine.layer_split import rank_needs
from exod.core.engine_core import EngineCore
from exod.core.node import NodeCore
from exod.core.status.health import LOSSY
from exod.core.status.view import PathView
from exod.daemon_api.peer_reports import (
    PreflightAnswer,
    PreflightMessage,
    PreflightWish,
    TransferProbe,
    TransferReply,
)
from exod.daemon_api.shapes import PreflightCheck, PreflightReport
from exod.diagnostics import packages
from exod.model import Edge, MeshPlan, NodeId, PathEnds
from exod.platform.system import Platform
from exod.wrong_route import is_right, route_cure
from exoengine.model_files.memory_fit import Fit, judge_fit

log = structlog.get_logger()

TRANSFER_BYTES: Final = 4 * 1024 * 1024
"""What a long prompt's hidden states come to. Slow start is long over by then."""

PIECE_BYTES: Final = 256 * 1024
"""Sent one after the other, each when the last was acknowledged: what else the connection carries waits for one
piece at most."""

TRANSFER_S: Final = 4.0
"""On a slow path the rate is known by then, and the rest is not sent."""

TRANSFER_DEADLINE_S: Final = 10.0
"""For a single piece: 2 s at 1 Mbit/s."""
WATCH_BYTES: Final = 64 * 1024
"""Of the check that runs by itself: several times the largest frame of any interface, nothing to a path in use."""

WATCH_DEADLINE_S: Final = 3.0
"""64 KiB at the pace of a telephone line."""

ANSWER_DEADLINE_S: Final = 15.0
FINE: Final = ""

MAX_WISHES: Final = 64
"""Wishes of other nodes that wait to be answered: each of the largest mesh has asked several times."""


class PeerConnection(Protocol):
    """One connection of the control plane, over one path."""

    def send_message(self, message: TransferProbe) -> bool: ...

    def abort(self) -> None: ...


class PeerConnections(Protocol):
    """What the checks need of the connections to other daemons."""

    def send(self, peer: NodeId, message: PreflightMessage) -> object: ...

    def connection_on(self, peer: NodeId, local: str, remote: str) -> PeerConnection | None: ...


class Preflight:
    """Runs the checks of this node and asks other nodes for theirs."""

    def __init__(
        self,
        me: NodeId,
        control: PeerConnections,
        engine: EngineCore,
        core: NodeCore,
        degraded_ms: float,
        path_source: Callable[[PathEnds], str | None],
        platform: Platform,
    ) -> None:
        self._me = me
        self._control, self._engine, self._core = control, engine, core
        self._degraded_ms = degraded_ms
        self._path_source = path_source
        self._platform = platform
        self._serial = 0
        self._answers: dict[int, asyncio.Future[tuple[PreflightCheck, ...]]] = {}
        self._transfers: dict[int, asyncio.Future[int]] = {}
        self._wishes: asyncio.Queue[tuple[NodeId, int]] = asyncio.Queue(MAX_WISHES)

    async def serve(self) -> None:
        """Answers the wishes of other nodes, side by side: one check may take its whole deadline. Never returns."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                peer, serial = await self._wishes.get()
                tasks.create_task(self._answer(peer, serial), name=f"preflight answer {serial} to {peer}")

    async def run(self) -> PreflightReport:
        """All checks of the present plan, on all its ranks."""
        plan = self._engine.plan
        if plan is None:
            check = PreflightCheck("plan", "mesh", False, "none", "no mesh is agreed", "exoctl links says why")
            return PreflightReport(False, time.time(), (check,))
        others = [node for node in plan.ring if node != self._me]
        results = await asyncio.gather(self.own_checks(), *(self._ask(node) for node in others))
        checks = tuple(check for result in results for check in result) + self._common_checks()
        return PreflightReport(all(check.ok for check in checks), time.time(), checks)

    async def own_checks(self) -> tuple[PreflightCheck, ...]:
        """The edges that start here, this node's ring port, memory and packages."""
        plan = self._engine.plan
        if plan is None:
            return ()
        checks: list[PreflightCheck] = []
        for edge in plan.edges:
            if edge.source == self._me:
                checks += [self._rtt_check(edge), self._route_check(edge), self._ring_check(edge)]
                checks.append(await self._transfer_check(edge))
            if edge.target == self._me:
                checks += [self._loss_check(edge), self._port_check(edge)]
        if self._me in plan.ring:
            checks.append(self._memory_check())
            checks.append(await asyncio.to_thread(self._packages_check))
        return tuple(checks)

    async def edge_checks(self) -> tuple[PreflightCheck, ...]:
        """A short transfer over each edge that starts here."""
        plan = self._engine.plan
        edges = [edge for edge in plan.edges if edge.source == self._me] if plan is not None else []
        return tuple([await self._transfer_check(edge, WATCH_BYTES, WATCH_DEADLINE_S) for edge in edges])

    # --- one edge -------------------------------------------------------------------------------------------

    def _path(self, peer: NodeId, edge: Edge) -> PathView | None:
        links = self._core.view(time.monotonic()).links
        link = next((link for link in links if link.peer == peer), None)
        return next((path for path in link.paths if path.id == edge.path), None) if link is not None else None

    def _rtt_check(self, edge: Edge) -> PreflightCheck:
        subject, path = self._subject(edge), self._path(edge.target, edge)
        if path is None or path.rtt_ms is None:
            return PreflightCheck("rtt", subject, False, "not measured", "no probe came back", "exoctl links")
        within, cure = path.rtt_ms <= self._degraded_ms, "use a faster path: connect a cable, see exoctl links"
        return _bounded("rtt", subject, within, f"{path.rtt_ms:.3f} ms", f"{self._degraded_ms:g} ms", cure)

    def _loss_check(self, edge: Edge) -> PreflightCheck:
        """Where the edge ends: only there it is known what did not come."""
        path = self._path(edge.source, edge)
        subject = f"{edge.target_interface} {edge.source_address} → {edge.target_address}"
        if path is None:
            return PreflightCheck("loss", subject, False, "not measured", "no probe came", "exoctl links")
        within, cure = path.lasting_loss <= LOSSY, "check the cable and its plugs"
        return _bounded("loss", subject, within, f"{path.lasting_loss:.1%}", f"{LOSSY:.0%}", cure)

    def _route_check(self, edge: Edge) -> PreflightCheck:
        leaves_from = self._path_source(PathEnds(edge.source_interface, edge.source_address, edge.target_address))
        good = is_right(leaves_from, edge.source_address)
        return PreflightCheck(
            "route",
            self._subject(edge),
            good,
            leaves_from or "no route",
            "the ring leaves from the right address" if good else f"the ring would not use {edge.source_interface}",
            FINE
            if good
            else route_cure(self._platform.system, edge.source_interface, edge.source_address, edge.target_address),
        )

    def _port_check(self, edge: Edge) -> PreflightCheck:
        """The ring listens only while it forms: the port is free, or our own rank has it."""
        subject = f"{edge.target_address}:{edge.target_port}"
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((edge.target_address, edge.target_port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE and self._is_our_ranks(edge.target_address, edge.target_port):
                return PreflightCheck("port", subject, True, "in use by our rank", "the ring is being formed")
            cure = "end the process that holds it, or set engine.ring_port"
            return PreflightCheck("port", subject, False, str(error.strerror), "the ring cannot listen here", cure)
        finally:
            sock.close()
        return PreflightCheck("port", subject, True, "free", "the ring can listen here")

    def _is_our_ranks(self, address: str, port: int) -> bool:
        """Does our own worker listen there?"""
        hello = self._engine.rank.worker.hello
        if hello is None:
            return False
        try:
            found = psutil.Process(hello.pid).net_connections("tcp4")
        except psutil.Error:
            return False
        return any(one.status == psutil.CONN_LISTEN and one.laddr == (address, port) for one in found)

    async def _transfer_check(
        self, edge: Edge, size: int = TRANSFER_BYTES, deadline_s: float | None = None
    ) -> PreflightCheck:
        subject = self._subject(edge)
        connection = self._control.connection_on(edge.target, edge.source_address, edge.target_address)
        if connection is None:
            text = (
                "no control connection runs over this path: TCP may be blocked on it, or large frames do not pass"
            )
            cure = "check firewalls on both hosts, set the same MTU on both ends, check the cable"
            return PreflightCheck("transfer", subject, False, "none", text, cure)
        deadline_s = TRANSFER_DEADLINE_S if deadline_s is None else deadline_s
        started, moved = time.monotonic(), 0
        while moved < size and (not moved or time.monotonic() - started < TRANSFER_S):
            piece = min(PIECE_BYTES, size - moved)
            if not await self._piece_passes(connection, piece, deadline_s):
                connection.abort()  # messages of the engine would wait behind what does not arrive
                text = f"{piece} bytes were not acknowledged within {deadline_s:.0f} s: large frames do not pass"
                cure = "set the same MTU on both ends; check the cable, try another port"
                return PreflightCheck("transfer", subject, False, "timed out", text, cure)
            moved += piece
        figure = f"{moved / (time.monotonic() - started) / 1e6:.1f} MB/s"
        return PreflightCheck("transfer", subject, True, figure, f"{moved >> 10} KiB over TLS, acknowledged")

    async def _piece_passes(self, connection: PeerConnection, size: int, deadline_s: float) -> bool:
        self._serial += 1
        serial = self._serial
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._transfers[serial] = future
        connection.send_message(TransferProbe(serial, bytes(size)))
        try:
            async with asyncio.timeout(deadline_s):
                await future
        except TimeoutError:
            return False
        finally:
            del self._transfers[serial]
        return True

    def _ring_check(self, edge: Edge) -> PreflightCheck:
        """What the ring itself met there. No group counts as formed before each edge has moved full frames over the
        ring's own port, and that is done again after each move.
        """
        subject, peer = self._subject(edge), edge.target if edge.source == self._me else edge.source
        link = self._core.links.get(peer)
        path = link.paths.get(edge.path) if link is not None else None
        port = f"{edge.target_address}:{edge.target_port}"
        cure = f"allow TCP port {edge.target_port} on both hosts; exoctl links shows what the ring met"
        if path is not None and path.ring.unfit:
            text = path.ring.cause or "the other end saw the ring fail on it"
            return PreflightCheck("ring", subject, False, "not fit", f"{text} ({port})", cure)
        if self._engine.rank.phase is not RankPhase.FORMED:
            text = self._engine.trouble() or "the ring has not been formed yet"
            return PreflightCheck("ring", subject, False, "not formed", text, cure)
        return PreflightCheck("ring", subject, True, "passed", f"full frames passed {port} before the group formed")

    # --- the node and the group -----------------------------------------------------------------------------

    def _memory_check(self) -> PreflightCheck:
        """Free memory against the bytes of this rank's share, unless they are loaded already."""
        available = psutil.virtual_memory().available
        figure = f"{available / 2**30:.1f} GiB free"
        plan, span, facts = self._engine.plan, self._engine.rank.span(), self._engine.rank.model.facts
        if self._engine.rank.loaded is not None:
            return PreflightCheck("memory", self._me, True, figure, "the rank's layers are loaded")
        if plan is None or span is None or facts is None:
            return PreflightCheck("memory", self._me, True, figure, "the model is not known yet")
        hello = self._engine.rank.worker.hello
        recommended = hello.recommended_bytes if hello is not None else 0
        if recommended:
            figure = f"{recommended / 2**30:.1f} GiB for a GPU, {figure}"
        needs = rank_needs(plan, facts.sizes)[plan.ring.index(self._me)]
        fit = judge_fit(needs.total_bytes, available, recommended)
        unsure = ", of which not all is free now: it is tried, and may be slow" if fit is Fit.UNCERTAIN else ""
        enough = fit is not Fit.TOO_SMALL
        cure = FINE if enough else "free memory, or give this rank fewer layers"
        return PreflightCheck("memory", self._me, enough, figure, f"{needs.text}{unsure}", cure)

    def _packages_check(self) -> PreflightCheck:
        """In a thread: it reads a file or two of each package."""
        for found in packages.look():
            return PreflightCheck("packages", self._me, False, "incomplete", found.text, found.cure)
        return PreflightCheck("packages", self._me, True, "complete", "all that exod needs is installed")

    def _common_checks(self) -> tuple[PreflightCheck, ...]:
        """What must be the same on all ranks: versions and model files."""
        ranks = self._engine.ranks()
        plan = self._engine.plan
        if plan is None or not plan.model:
            return (
                PreflightCheck("model", "engine", False, "none", "no model is loaded", "exoctl engine load MODEL"),
            )
        checks = []
        for rank in ranks:
            if rank.phase is RankPhase.FAILED:
                text = f"{rank.sender} cannot load it: {rank.text}"
                checks.append(
                    PreflightCheck("load", plan.model, False, rank.code, text, "exoctl engine load MODEL")
                )
        if checks:
            return tuple(checks)
        for name, values, cure in (
            ("versions", {rank.versions for rank in ranks}, "install the same versions on all nodes"),
            ("model", {rank.fingerprint for rank in ranks}, "copy one model folder to all nodes"),
        ):
            known = len(ranks) == len(plan.ring) and "" not in values
            same = known and len(values) == 1
            text = "the same on all ranks" if same else "ranks differ" if known else "not all ranks are loaded"
            figure = next(iter(values)) if same else f"{len(ranks)} of {len(plan.ring)} ranks"
            checks.append(PreflightCheck(name, plan.model, same, figure, text, FINE if same else cure))
        return (*checks, self._context_check(plan))

    def _context_check(self, plan: MeshPlan) -> PreflightCheck:
        """The plan's settings are every rank's. A node that is configured otherwise would host the model otherwise,
        once it coordinates.
        """
        cards = (self._core.card, *(link.peer for link in self._core.links.values()))
        others = [card.name for card in cards if card.id in plan.ring and card.context != plan.context]
        text = f"{', '.join(others)} set them differently" if others else "the same on all ranks"
        cure = "set engine.max_context, kv_bits and kv_group_size alike on all nodes"
        return PreflightCheck("context", plan.model, not others, str(plan.context), text, cure if others else FINE)

    def _subject(self, edge: Edge) -> str:
        return f"{edge.source_interface} {edge.source_address} → {edge.target_address}"

    # --- other nodes ----------------------------------------------------------------------------------------

    async def _ask(self, node: NodeId) -> tuple[PreflightCheck, ...]:
        self._serial += 1
        serial = self._serial
        future: asyncio.Future[tuple[PreflightCheck, ...]] = asyncio.get_running_loop().create_future()
        self._answers[serial] = future
        try:
            self._control.send(node, PreflightWish(serial))
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                return await future
        except TimeoutError:
            text = f"it did not answer within {ANSWER_DEADLINE_S:.0f} s"
            return (PreflightCheck("answer", node, False, "none", text, "exoctl status on that node"),)
        finally:
            del self._answers[serial]

    def handle(self, peer: NodeId, message: PreflightMessage) -> None:
        """A transfer probe or a wish of another node, or an answer to ours."""
        match message:
            case TransferProbe(serial=serial, payload=payload):
                self._control.send(peer, TransferReply(serial, len(payload)))
            case TransferReply(serial=serial, received_bytes=received):
                transfer = self._transfers.get(serial)
                if transfer is not None and not transfer.done():
                    transfer.set_result(received)
            case PreflightWish(serial=serial):
                try:
                    self._wishes.put_nowait((peer, serial))
                except asyncio.QueueFull:
                    log.warning("preflight_wish_dropped", peer=peer, waiting=MAX_WISHES)
            case PreflightAnswer(serial=serial, checks=checks):
                answer = self._answers.get(serial)
                if answer is not None and not answer.done():
                    answer.set_result(checks)

    async def _answer(self, peer: NodeId, serial: int) -> None:
        self._control.send(peer, PreflightAnswer(serial, await self.own_checks()))


def _bounded(name: str, subject: str, within: bool, figure: str, limit: str, cure: str) -> PreflightCheck:
    """A figure that has an upper limit; the cure is for what is over it."""
    text = f"within {limit}" if within else f"over the limit of {limit}"
    return PreflightCheck(name, subject, within, figure, text, FINE if within else cure)


def preflight_data(check: PreflightCheck) -> dict[str, object]:
    """A failed check as the event log has it."""
    return {"check": check.name, "figure": check.figure, "text": check.text, "cure": check.cure}
