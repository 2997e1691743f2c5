"""Control-plane messages of the engine: how daemons bring their ranks together and pass requests around.

Any of them may be lost with its connection or come twice: what matters is repeated until it shows in a
RankStatus, and handling one twice is harmless.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

import msgspec

from exod.model import Counter, NodeId
from exoengine.protocol import (
    NO_EDGES,
    NOTHING_MEASURED,
    EdgeCosts,
    Finished,
    GenerationRequest,
    RdmaSetup,
    RequestFailed,
    StepCosts,
    TokenOut,
)

UNKNOWN_ORIGIN: Final = NodeId("")
"""Of a generation that outlived its daemon, until its origin makes itself known."""


class RankPhase(StrEnum):
    """How far one rank is on its way into the group of a plan."""

    OFF = "off"
    RESOLVING = "resolving"
    LOADING = "loading"
    LOADED = "loaded"
    """Holds its layers and stands in no group; with an attempt: it gave that one up, or its process is new."""
    PREPARING = "preparing"
    PREPARED = "prepared"
    FORMED = "formed"
    ABORTED = "aborted"
    FAILED = "failed"


IN_GROUP: Final = frozenset({RankPhase.PREPARING, RankPhase.PREPARED, RankPhase.FORMED})
"""An attempt is under way, or came to its group."""

HOLDS_ITS_LAYERS: Final = IN_GROUP | {RankPhase.LOADED, RankPhase.ABORTED}


class RdmaProof(msgspec.Struct, frozen=True):
    """What a rank's node found of RDMA when the coordinator last asked for it; `number` is that of the order."""

    number: int = 0
    state: Literal["none", "running", "ok", "failed"] = "none"
    text: str = ""


class RankStatus(msgspec.Struct, frozen=True, tag="rank", omit_defaults=True):
    """All that others need to know of one node's rank. Sent to every node, on change and every few seconds. What
    has its default is not sent: one that is short passes where full frames are swallowed, and says so.
    """

    sender: NodeId
    incarnation: Counter
    seq: Counter
    phase: RankPhase
    plan_hash: str = ""
    attempt: Counter = 0
    code: str = ""
    text: str = ""
    newly_unfit: bool = False
    """Has its node said just now that it cannot serve? A plan without it comes where the others hold the model."""
    model: str = ""
    fingerprint: str = ""
    versions: str = ""
    layers: tuple[int, int] | None = None
    parts: int = 1
    """Tensor parallelism: of each of these layers it has one of so many parts."""
    pid: int = 0
    restarts: int = 0
    begun_order: Counter = 0
    """The highest order of a request that this rank has been given."""
    finished_order: Counter = 0
    """All requests up to this order have ended in the cluster, as far as this rank was told."""
    under_way: tuple[Counter, ...] = ()
    """The orders of the requests that this rank has been given and has not ended."""
    ended: tuple[Counter, ...] = ()
    """Those above `finished_order` that have ended on this rank."""
    unanswered: tuple[Counter, ...] = ()
    """Those of `ended` whose answer this rank does not have: it was given up, or another coordinator ended it."""
    generating: bool = False
    progress: tuple[int, ...] = ()
    """For each of `under_way`, how many tokens of its prompt and its answer this rank is through."""
    computing: bool = False
    """Is it in a long step, and uses the processor? Others that wait for it wait on."""
    in_step_s: float = 0.0
    gave_up: str = ""
    """Where the phase is ABORTED, the code of why."""
    sync_mode: Literal["fast", "safe"] = "safe"
    sync_reason: str = ""
    gpu_waited_s: float = 0.0
    """The longest that a fast step waited of late, where that is beyond a GPU's watchdog; else 0."""
    tokens_per_s: float = 0.0
    baseline_tokens_per_s: float = 0.0
    last_gap_ms: float = 0.0
    memory_mib: int = 0
    recommended_mib: int = 0
    """Of the GPU's memory, what its MLX says that it should use at most; 0 where it says nothing."""
    costs: StepCosts = NOTHING_MEASURED
    """What its layers took by themselves when they were loaded."""
    edges: EdgeCosts = NO_EDGES
    """What a sum over its edges took when its group was formed."""
    wired_mib: int = 0
    """How much of it is wired for its layers and its KV cache at most."""
    download_done: int = 0
    download_total: int = 0
    """Bytes of the model's files that are here, and of all of them, while they are downloaded; else 0."""
    over_rdma: bool = False
    """Do its graphs communicate over RDMA?"""
    no_rdma: str = "its exod knows of none"
    """Why its worker can be in no group over RDMA; empty where it can."""
    proof: RdmaProof = RdmaProof()
    transport_text: str = ""
    """Of the coordinator: why the ranks do not run over RDMA; empty where there is nothing to say."""

    @property
    def has_failed(self) -> bool:
        """Is it not to be waited for? It may still be tried again."""
        tries = self.phase is RankPhase.LOADING or (self.phase is RankPhase.RESOLVING and not self.download_total)
        return self.phase is RankPhase.FAILED or (tries and bool(self.code))

    def has_ended(self, order: int) -> bool:
        """Has this rank been given the request, and ended it?"""
        return order <= self.finished_order or order in self.ended

    def has_forgotten(self, order: int, is_known_to_last: bool) -> bool:
        """Has it ended here, so that a new process of this rank hears nothing of it? Where others have not ended it
        that must last: what has just ended without an answer is about to end there, too.
        """
        return order <= self.finished_order or (is_known_to_last and order in self.unanswered)


class FormOrder(msgspec.Struct, frozen=True, tag="form_order"):
    """The coordinator's order to every rank of a plan: `prepare` the group's attempt, then `form` it."""

    sender: NodeId
    plan_hash: str
    attempt: Counter
    step: Literal["prepare", "form"]
    rdma: RdmaSetup | None = None
    """What goes on inside the attempt's graphs goes over RDMA; None: over TCP."""


class ProveRdma(msgspec.Struct, frozen=True, tag="prove_rdma"):
    """The coordinator's order to every rank of a plan: find out, in a process of its own, whether RDMA works."""

    sender: NodeId
    plan_hash: str
    number: int
    setup: RdmaSetup


class SubmitRequest(msgspec.Struct, frozen=True, tag="submit"):
    """The node that a client spoke to asks its coordinator to have this generated. Repeated until Queued, and
    again whenever nothing came for a while: the origin alone knows for sure that a request is still wanted.
    """

    origin: NodeId
    request: GenerationRequest
    tokens: tuple[int, ...] = ()
    """What the origin has of the answer already, less its last token: a rank that is given a whole answer would
    find nothing left to do, and never say that it is finished."""
    client: str = ""
    """Who asked, by a name that the origin makes up: clients take turns."""


class Queued(msgspec.Struct, frozen=True, tag="queued"):
    request_id: str


class SubmitRefused(msgspec.Struct, frozen=True, tag="refused"):
    request_id: str
    code: str
    text: str
    retry_after_s: float


class BeginRequest(msgspec.Struct, frozen=True, tag="begin_request"):
    """The coordinator's order to every rank: generate this, too. The same `order` on all ranks."""

    sender: NodeId
    order: Counter
    origin: NodeId
    """Empty where the sender does not know it: a rank that outlived its daemon."""
    request: GenerationRequest
    """Its id is that of one generation (`generation_id`), not the client's."""
    tokens: tuple[int, ...] = ()
    client: str = ""
    ended_order: Counter = 0
    """Every request up to this order has ended in the cluster."""
    only_to_end: bool = False
    """Has this rank ended it for another coordinator while others went on? Nothing of it is generated here."""


class TellBegun(msgspec.Struct, frozen=True, tag="tell_begun"):
    """The coordinator asks a rank for the requests that the rank is at. Answered with a Begun for each."""

    sender: NodeId


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    begin: BeginRequest


class RequestsEnded(msgspec.Struct, frozen=True, tag="requests_ended"):
    """The coordinator tells a rank, which may have been away: everything up to `order` has ended, and `orders`."""

    sender: NodeId
    order: Counter
    orders: tuple[Counter, ...] = ()


class CancelRequest(msgspec.Struct, frozen=True, tag="cancel_request"):
    """The client went away, or its node gave up on it. The id is the client's."""

    request_id: str


class RelayedOutput(msgspec.Struct, frozen=True, tag="relayed"):
    """What rank 0 sends of an answer, to an origin that hosts no rank itself."""

    outputs: tuple[TokenOut | Finished | RequestFailed, ...]
    token_count: Counter
    """How many tokens of the answer come before: an origin that lacks one must not take the end for its own."""


class RelayAgain(msgspec.Struct, frozen=True, tag="relay_again"):
    """An origin without a rank, to rank 0: send again what comes after this many tokens."""

    request_id: str
    token_count: Counter


class ModelWish(msgspec.Struct, frozen=True, tag="model_wish"):
    """A person wants this model hosted (empty: none). To the coordinator, whose card decides."""

    sender: NodeId
    model: str


EngineMessage = (
    RankStatus
    | FormOrder
    | ProveRdma
    | SubmitRequest
    | Queued
    | SubmitRefused
    | BeginRequest
    | TellBegun
    | Begun
    | RequestsEnded
    | CancelRequest
    | RelayedOutput
    | RelayAgain
    | ModelWish
)


def generation_id(request_id: str, order: int) -> str:
    """Names one generation of a client's request: ranks may still remember an earlier one by its own name."""
    return f"{request_id}~{order:x}"


def client_id(generation: str) -> str:
    """The client's request that a generation is of."""
    return generation.rpartition("~")[0] or generation
