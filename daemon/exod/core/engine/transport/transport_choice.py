"""Does the next group's graphs' traffic go over RDMA, or over TCP? On the coordinator, for all ranks alike.

RDMA is taken where nothing stands in its way, and only once it is proven: each rank's node runs a process that
joins a group over RDMA with the others', sums, sends and ends, while the ranks go on over TCP. The proof is of one
wiring; another one is proven anew. A group over RDMA that is lost to a fault, or a proof that fails, is followed by
a pause that doubles, and is forgotten once a group over RDMA has lived for a while. Until then all is TCP.

Decides that, when a proof begins and what it found. Never who is killed, nor when a group is left. Times in
monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from exod.core.engine.engine_events import EmitEvent, RdmaWired
from exod.core.engine.engine_messages import ProveRdma, RankStatus
from exod.core.engine.group_formation import Formation
from exod.model import MeshPlan, NodeId
from exoengine.protocol import RdmaSetup

PROOF_DEADLINE_S: Final = 45.0
"""Past the deadline of a node's own process, which says what it found before; this is for a node not heard of."""

REPEAT_S: Final = 2.0
"""An order may be lost with its connection: it is repeated until the rank's status shows it."""

PAUSE_FIRST_S: Final = 10.0
"""A cable that was pulled is not back sooner, and a proof takes a few seconds of two processes."""
PAUSE_LIMIT_S: Final = 600.0
LIVED_S: Final = 600.0
"""A group over RDMA that lived this long was sound: the next fault is a new one."""

ALL_SEALED: Final = 'mesh.seal = "all": what goes over RDMA carries no MAC'
TCP_WISHED: Final = 'engine.transport = "tcp"'


class ProofOrder(msgspec.Struct, frozen=True):
    """Command: send this to this node, which may be the coordinator itself."""

    to: NodeId
    order: ProveRdma


class RunningProof(msgspec.Struct, frozen=True):
    number: int
    plan_hash: str
    setup: RdmaSetup
    deadline: float
    repeat_at: float


class TransportChoice:
    """`wished` is this node's `engine.transport`; `sealed`: everything between ranks must carry a MAC."""

    def __init__(self, me: NodeId, wished: str, sealed: bool = False) -> None:
        self._me, self.wished, self._sealed = me, wished, sealed
        self._wired = RdmaWired("", None, "")
        self._proven: RdmaSetup | None = None
        self._proof: RunningProof | None = None
        self._number = 0
        self._failure = ""
        """Why RDMA waits; empty where it does not."""
        self._pause_s = 0.0
        self._retry_at = 0.0
        self._used_since: float | None = None
        """Since when the group has been over RDMA."""
        self._events: list[EmitEvent] = []

    # --- what is seen ---------------------------------------------------------------------------------------

    def wired(self, wiring: RdmaWired) -> None:
        """What is known of the cables between the plan's ranks. Other cables are proven anew."""
        self._wired = wiring
        if wiring.setup != self._proven:
            self._proven = None

    def used(self, now: float) -> None:
        """The group stands, over RDMA."""
        if self._used_since is None:
            self._used_since, self._failure = now, ""
            self._tell("rdma", "RDMA was proven between all ranks")

    def left(self) -> None:
        """The group over RDMA was left at a step's end."""
        self._used_since = None

    def lost(self, text: str, now: float) -> None:
        """A group over RDMA was lost to a fault, or was not formed."""
        lived = self._used_since is not None and now - self._used_since >= LIVED_S
        self._used_since = None
        self._fail(f"the group over RDMA was lost: {text}", 0.0 if lived else self._pause_s, now)

    # --- what follows ---------------------------------------------------------------------------------------

    def offer(self, plan: MeshPlan | None) -> RdmaSetup | None:
        """What the plan's next group is to be over RDMA with; None: TCP."""
        return self._proven if plan is not None and self._wired.plan_hash == plan.hash else None

    def follow(
        self, formation: Formation, plan: MeshPlan | None, ranks: Sequence[RankStatus], now: float
    ) -> list[ProofOrder]:
        """Takes note of what became of the group of `plan`, which is this node's to form, and offers it RDMA."""
        if formation.rdma_lost:
            self.lost(formation.rdma_lost, now)
            formation.rdma_lost = ""
        if formation.formed and formation.rdma is not None:
            self.used(now)
        elif formation.formed:
            self.left()
        orders = self.advance(plan, ranks, formation.formed and formation.rdma is None, now)
        formation.offered = self.offer(plan)
        return orders

    def news(self) -> list[EmitEvent]:
        """What people may want to know of, once."""
        told, self._events = self._events, []
        return told

    def advance(
        self, plan: MeshPlan | None, ranks: Sequence[RankStatus], standing: bool, now: float
    ) -> list[ProofOrder]:
        """`standing`: the group stands, over TCP. Begins a proof where one is due, and takes note of its end."""
        if plan is None or self.obstacle(plan, ranks):
            self._proof = None
            return []
        if self._proven is not None:
            return []
        if self._proof is not None and self._is_of(self._proof, plan):
            return self._watch(self._proof, plan, ranks, now)
        self._proof = None
        return self._begin(plan, ranks, now) if standing and now >= self._retry_at else []

    def next_deadline(self) -> float | None:
        if self._proof is not None:
            return min(self._proof.deadline, self._proof.repeat_at)
        return self._retry_at if self._failure and self._wired.setup is not None else None

    def obstacle(self, plan: MeshPlan, ranks: Sequence[RankStatus]) -> str:
        """Why RDMA cannot be, in words; empty where it can, as far as is known."""
        if self.wished == "tcp":
            return TCP_WISHED
        if self._sealed:
            return ALL_SEALED
        if len(plan.ring) < 2:
            return "there is no other rank"
        if unable := next((rank for rank in ranks if rank.no_rdma), None):
            return f"{unable.sender}: {unable.no_rdma}"
        if any(1 < rank.parts < len(plan.ring) for rank in ranks):
            return "its stages are tensor groups, and JACCL has no groups within a group"
        if self._wired.plan_hash != plan.hash:
            return "the cables between the ranks are not known yet"
        return self._wired.problem

    def text(self, plan: MeshPlan | None, ranks: Sequence[RankStatus]) -> str:
        """Why the ranks run over TCP, for people; empty where they do not, or where nobody asked for anything else
        and it was never otherwise.
        """
        if plan is None or self._used_since is not None:
            return ""
        obstacle = self.obstacle(plan, ranks)
        if obstacle:
            asked = self.wished == "rdma" or self._failure
            return f"ranks run over TCP, not RDMA: {obstacle}" if asked and self.wished != "tcp" else ""
        if self._proof is not None:
            return "ranks run over TCP while RDMA is proven between them"
        if self._failure:
            return f"ranks run over TCP: {self._failure}; RDMA is proven again in {self._pause_s:.0f} s at most"
        return ""

    # --- a proof --------------------------------------------------------------------------------------------

    def _begin(self, plan: MeshPlan, ranks: Sequence[RankStatus], now: float) -> list[ProofOrder]:
        setup = self._wired.setup
        if setup is None or len(ranks) < len(plan.ring):
            return []
        self._number = max(self._number, *(rank.proof.number for rank in ranks)) + 1
        self._proof = RunningProof(self._number, plan.hash, setup, now + PROOF_DEADLINE_S, now + REPEAT_S)
        return self._orders(self._proof, plan.ring)

    def _watch(
        self, proof: RunningProof, plan: MeshPlan, ranks: Sequence[RankStatus], now: float
    ) -> list[ProofOrder]:
        found = {rank.sender: rank.proof for rank in ranks if rank.proof.number == proof.number}
        failed = next((f"{node}: {one.text}" for node, one in found.items() if one.state == "failed"), "")
        if failed:
            self._fail(f"the proof of RDMA failed: {failed}", self._pause_s, now)
        elif len(found) == len(plan.ring) and all(one.state == "ok" for one in found.values()):
            self._proven, self._proof = proof.setup, None
        elif now >= proof.deadline:
            silent = ", ".join(node for node in plan.ring if node not in found) or "a node"
            self._fail(f"the proof of RDMA did not end: nothing came from {silent}", self._pause_s, now)
        elif now >= proof.repeat_at:
            self._proof = msgspec.structs.replace(proof, repeat_at=now + REPEAT_S)
            return self._orders(proof, [node for node in plan.ring if node not in found])
        return []

    def _orders(self, proof: RunningProof, nodes: Sequence[NodeId]) -> list[ProofOrder]:
        order = ProveRdma(self._me, proof.plan_hash, proof.number, proof.setup)
        return [ProofOrder(node, order) for node in nodes]

    def _is_of(self, proof: RunningProof, plan: MeshPlan) -> bool:
        return proof.plan_hash == plan.hash and proof.setup == self._wired.setup

    def _fail(self, text: str, paused_s: float, now: float) -> None:
        self._proof = self._proven = None
        self._pause_s = min(PAUSE_LIMIT_S, max(PAUSE_FIRST_S, paused_s * 2))
        self._retry_at, self._failure = now + self._pause_s, text
        self._tell("tcp", text)

    def _tell(self, transport: str, reason: str) -> None:
        self._events.append(EmitEvent("engine.transport", {"transport": transport, "reason": reason}))
