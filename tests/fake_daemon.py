"""A daemon to test shells against: `DaemonCommands` on values that a test sets, with no network and no engine.

What it shows is a plausible pair of Macs (`pair_status`), so that screens and JSON can be judged by eye. What it
generates is what the demo model would say to "count from A to B", one token a number; `pace_s`, `pause`, `fail_at`
and `refuse` make it slow, quiet, break and refuse. Everything that was asked of it stands in `asked`.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator

from exod.core.cluster.jaccl import JacclHost, JacclHostfile
from exod.daemon_api import stream_keepalive
from exod.daemon_api.counters import DaemonCounters, MetricsSnapshot
from exod.daemon_api.interface import GenerationDelta, GenerationEnd, KeepAlive, TextDelta, Usage
from exod.daemon_api.self_fault import SelfFault
from exod.daemon_api.shapes import (
    ClusterReport,
    DoctorReport,
    Done,
    EngineReport,
    Finding,
    InterfaceLine,
    Invited,
    LinkDecision,
    LinkHistoryReport,
    LinksReport,
    MeshHistoryLine,
    MeshReport,
    NetcheckReport,
    NetworkCheck,
    PathTrace,
    PingReply,
    PreflightCheck,
    PreflightReport,
    RankDetail,
    Readiness,
    StatusReport,
)
from exod.errors import ExitCode, RequestError
from exod.model import (
    Event,
    Kind,
    NodeId,
    PathId,
)
from exoengine.protocol import GenerationRequest, RankFigures, TextAnswered, TextAsked
from tests.sample_reports import CABLE, HERE, MODEL, PEER, STARTED_AT, links_of, pair_status


class FakeDaemon:
    """Set the public attributes, then let a shell ask."""

    def __init__(self, status: StatusReport | None = None) -> None:
        self.status_now = status or pair_status()
        self.ready_now = Readiness(True)
        self.models_now = [MODEL]
        self.full_model_now = ""
        self.key_file = "cluster.key"
        self.log: list[Event] = [
            Event(STARTED_AT, "node.up", "studio2", {"version": "0.1.0"}),
            Event(STARTED_AT + 1, "link.selected", "studio2", {"from": "en0", "to": "bridge0", "reason": "held"}),
        ]
        self.preflight_now = PreflightReport(
            True,
            STARTED_AT,
            (PreflightCheck("rtt", "studio1 to studio2", True, "0.31 ms", "within 5 ms"),),
        )
        figures, in_use = (0.3, None, 0.4), (True, False, True)
        self.traces = (PathTrace(PEER, "studio2", CABLE, "bridge0", Kind.THUNDERBOLT, 5.0, figures, in_use),)
        self.findings: tuple[Finding, ...] = ()
        self.pace_s = 0.0
        self.pause: asyncio.Event | None = None
        """While set and not fired, a generation says nothing from its third token on."""
        self.fail_at: int | None = None
        self.refuse: RequestError | None = None
        self.script: list[GenerationDelta] | None = None
        """What a generation says instead of counting."""
        self.lost_pings: set[int] = set()
        self.asked: list[tuple[object, ...]] = []
        self.requests: list[GenerationRequest] = []
        self.cancelled: list[str] = []
        self.running = 0
        self._news = asyncio.Condition()

    # --- snapshots ---

    def status(self) -> StatusReport:
        return self.status_now

    def links(self, peer: NodeId | None) -> LinksReport:
        report = links_of(self.status_now)
        return LinksReport(tuple(link for link in report.links if peer in (None, link.peer)), report.at)

    def links_history(self, peer: NodeId | None, limit: int) -> LinkHistoryReport:
        self.asked.append(("links_history", peer, limit))
        figures = {"bridge0": "up 0.31 ms", "en0": "up 0.25 ms"}
        decision = LinkDecision(STARTED_AT, PEER, "studio2", CABLE, "selected, held for 3 s", figures)
        return LinkHistoryReport((decision,)[:limit], self.rtt_traces())

    def rtt_traces(self) -> tuple[PathTrace, ...]:
        return self.traces

    def mesh(self) -> MeshReport:
        history = MeshHistoryLine(
            STARTED_AT, 7, "3fa9c1d2e5b60718", HERE, (HERE, PEER), "bridge0 is better", 184.2, 41.7
        )
        return MeshReport(self.status_now.mesh, None, (history,), {HERE: "studio1", PEER: "studio2"})

    def jaccl(self) -> JacclHostfile:
        if len(self.status_now.nodes) < 2:
            raise RequestError("not_cabled", "JACCL joins two nodes or more", ExitCode.NO_PATH)
        hosts = (JacclHost("studio1", ("10.0.0.1",), (None, "rdma_en2")),)
        return JacclHostfile("jaccl", (), hosts)

    def engine(self) -> EngineReport:
        engine = self.status_now.engine
        names = {node.id: node.name for node in self.status_now.nodes}
        ranks = tuple(
            RankDetail(
                rank.node, names[rank.node], rank.rank, rank.layers, rank.pid, rank.restarts, "ready", 9_000_000
            )
            for rank in engine.ranks
        )
        return EngineReport(
            engine, ranks, "c0ffee", self.status_now.mesh.plan, 8, 4096, None, None, {"mlx": "0.32.2"}
        )

    def cluster(self) -> ClusterReport:
        return ClusterReport("home", self.key_file, "0123-4567-89ab-cdef", self.status_now.nodes)

    def ready(self) -> Readiness:
        return self.ready_now

    def models(self) -> list[str]:
        return self.models_now

    def full_model(self) -> str:
        return self.full_model_now or (self.models_now[0] if self.models_now else "")

    async def text(self, asked: TextAsked) -> TextAnswered:
        """A token for each character of a text or of a prompt's messages."""
        if asked.tokens:
            return TextAnswered("", text="".join(chr(token % 0xD800) for token in asked.tokens))
        text = asked.text
        if asked.request is not None:
            text = "".join(message.content for message in asked.request.messages or ())
        pieces = tuple(char.encode() for char in text) if asked.wants_pieces else ()
        return TextAnswered("", tuple(map(ord, text)), pieces=pieces)

    def metrics(self) -> MetricsSnapshot:
        figures = RankFigures(100, 250, 7, stage_s=6.0, idle_s=2.0, kv_bytes=4096, prompt_cache_bytes=8192)
        counters = DaemonCounters(
            datagrams_sent=1234, completion_tokens=58, rank=figures, queue_wait_s=0.7, preemptions=3,
            queue_waits=((0.1, 3), (1.0, 4), (math.inf, 4)), recoveries={"fault": (2, 0.5), "move": (1, 0.2)},
        )  # fmt: skip
        return MetricsSnapshot(self.status_now, counters)

    # --- commands ---

    async def netcheck(self) -> NetcheckReport:
        return NetcheckReport(
            (
                InterfaceLine(
                    "bridge0",
                    Kind.THUNDERBOLT,
                    "hardware port Thunderbolt Bridge",
                    True,
                    ("10.0.0.1/24",),
                    True,
                    "wired",
                ),
                InterfaceLine(
                    "lo0", Kind.LOOPBACK, "loopback flag", True, ("127.0.0.1/8",), False, "stays on this host"
                ),
            ),
            (NetworkCheck("mdns", "_exod._tcp", True, "heard studio2 3 s ago"),),
        )

    async def preflight(self) -> PreflightReport:
        return self.preflight_now

    async def doctor(self) -> DoctorReport:
        return DoctorReport(self.findings, ("interfaces", "routes"))

    async def renegotiate(self, reason: str) -> Done:
        self.asked.append(("renegotiate", reason))
        return Done("a new plan was asked for")

    async def cluster_forget(self, peer: NodeId) -> Done:
        self.asked.append(("cluster_forget", peer))
        return Done("forgotten")

    def cluster_invite(self, for_s: float, once: bool) -> Invited:
        self.asked.append(("cluster_invite", for_s, once))
        return Invited("exod2-word", 1_800_000_000.0, once)

    async def cluster_rotate(self) -> Done:
        self.asked.append(("cluster_rotate",))
        return Done("the cluster has a new key")

    async def cluster_remove(self, node: NodeId) -> Done:
        self.asked.append(("cluster_remove", node))
        return Done("removed")

    async def engine_load(self, model: str) -> Done:
        self.asked.append(("engine_load", model))
        return Done(f"loading {model}")

    async def engine_unload(self) -> Done:
        self.asked.append(("engine_unload",))
        return Done("unloaded")

    async def engine_drain(self) -> Done:
        self.asked.append(("engine_drain",))
        return Done("drained")

    async def model_pull(self, model: str, everywhere: bool) -> Done:
        self.asked.append(("model_pull", model, everywhere))
        return Done("they fetch it")

    async def model_pause(self, model: str) -> Done:
        self.asked.append(("model_pause", model))
        return Done("paused")

    async def debug_fault(self, path: PathId, drop: bool, delay_ms: float, for_s: float) -> Done:
        self.asked.append(("debug_fault", path, drop, delay_ms, for_s))
        return Done("the fault is in force")

    async def debug_self_fault(self, kind: SelfFault, for_s: float) -> Done:
        self.asked.append(("debug_self_fault", kind, for_s))
        return Done("the fault is in force")

    async def debug_pin(self, path: PathId, for_s: float) -> Done:
        self.asked.append(("debug_pin", path, for_s))
        return Done("pinned")

    # --- streams ---

    async def ping(self, peer: NodeId, path: PathId | None, count: int) -> AsyncGenerator[PingReply, None]:
        self.asked.append(("ping", peer, path, count))
        (link,) = self.links(peer).links
        wanted = path or link.selected
        line = next(candidate for candidate in link.paths if candidate.id == wanted)
        for seq in range(count):
            rtt_us = None if seq in self.lost_pings else 312.0 + seq
            yield PingReply(
                seq,
                peer,
                link.peer_name,
                line.id,
                line.interface,
                line.kind,
                line.local,
                line.remote,
                rtt_us,
                "" if rtt_us else "no answer within 1 s",
            )

    async def events(self, since: float | None, follow: bool) -> AsyncGenerator[Event, None]:
        at = 0
        self.running += 1
        try:
            while True:
                while at < len(self.log):
                    event = self.log[at]
                    at += 1
                    if since is None or event.ts > since:
                        yield event
                if not follow:
                    return
                async with self._news:
                    while at >= len(self.log):
                        await self._news.wait()
        finally:
            self.running -= 1

    async def add_event(self, event: Event) -> None:
        async with self._news:
            self.log.append(event)
            self._news.notify_all()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        self.requests.append(request)
        if self.refuse is not None:
            raise self.refuse
        if self.script is not None:
            for delta in self.script:
                yield delta
            return
        self.running += 1
        ended = False
        try:
            pieces = answer_to(request)
            yield KeepAlive("prefilling")
            kept = pieces[: request.max_tokens]
            for index, text in enumerate(kept):
                if index == self.fail_at:
                    raise RequestError("recovery_failed", "studio2 did not return within 60 s", ExitCode.DEGRADED)
                if index == 2 and self.pause is not None:
                    async for keep_alive in _until_set(self.pause):
                        yield keep_alive
                await asyncio.sleep(self.pace_s)
                top = ((9, -5.5, b"<end>"),) if request.sampling.logprobs > 0 else ()
                logprob = -0.25 if request.sampling.logprobs >= 0 else None
                yield TextDelta(index, text, logprob, top, token=index + 100, piece=text.encode())
            ended = True
            yield GenerationEnd("stop" if len(kept) == len(pieces) else "length", Usage(12, len(kept), 4))
        finally:
            self.running -= 1
            if not ended:
                self.cancelled.append(request.request_id)


async def _until_set(pause: asyncio.Event) -> AsyncGenerator[KeepAlive, None]:
    while not pause.is_set():
        try:
            async with asyncio.timeout(stream_keepalive.KEEP_ALIVE_S):
                await pause.wait()
        except TimeoutError:
            yield KeepAlive()


def answer_to(request: GenerationRequest) -> list[str]:
    """The demo model's answer, a piece a token: "1", " 2", " 3" …; other prompts get a fixed sentence."""
    prompt = request.messages[-1].content if request.messages else str(request.prompt)
    match = re.search(r"count from (\d+) to (\d+)", prompt)
    if match is None:
        return ["I ", "can ", "count."]
    first, last = int(match[1]), int(match[2])
    return [str(first), *(f" {number}" for number in range(first + 1, last + 1))]
