"""What goes into the engine's core and what comes out of it. Frozen values both ways, with `now` beside them.

The shell turns what it sees into an EngineInput and carries out the EngineCommands that come back, in their order.
`now` is monotonic seconds. Commands never name this node: what it says to itself, the core handles inside. A
connection to a peer is the same input as the mesh's core takes: `PeerConnected` of core/base/events.py.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from exod.core.base.events import PeerConnected
from exod.core.engine.engine_messages import EngineMessage, RelayedOutput
from exod.model import ClusterWish, MeshPlan, NodeId
from exoengine.model_files.memory_fit import ModelSizes
from exoengine.protocol import Finished, FromWorker, GenerationRequest, RdmaSetup, TokenOut, ToWorker


class ModelFacts(msgspec.Struct, frozen=True):
    """What is known of a model before it is loaded."""

    model: str
    folder: str
    sizes: ModelSizes


# --- inputs: the mesh ---------------------------------------------------------------------------------------


class PlanCommitted(msgspec.Struct, frozen=True):
    """All members agreed on `plan`; `reason` is for people."""

    plan: MeshPlan
    reason: str


class PlanSuspended(msgspec.Struct, frozen=True):
    """The plan with this hash cannot be used until the next commit."""

    plan_hash: str
    reason: str


class NodeCable(msgspec.Struct, frozen=True):
    """A cable to a neighbour beside the one of the plan's edge, as this node sees it."""

    peer: NodeId
    interface: str
    local: str
    remote: str


class LinkHealthChanged(msgspec.Struct, frozen=True):
    """Are the links of this rank's edges agreed and healthy? May be said again without a change."""

    healthy: bool
    reason: str
    cables: tuple[NodeCable, ...] = ()
    """Further ones to its neighbours, which its next group uses."""


class RdmaWired(msgspec.Struct, frozen=True):
    """What is known of the cables between the ranks of the plan with this hash. Only its coordinator needs it."""

    plan_hash: str
    setup: RdmaSetup | None
    problem: str
    """Why there is no setup, for people."""


class PeerLost(msgspec.Struct, frozen=True):
    """The node is down: its last report of its rank no longer counts."""

    peer: NodeId


class EngineMessageReceived(msgspec.Struct, frozen=True):
    sender: NodeId
    message: EngineMessage


# --- inputs: the worker and the model -----------------------------------------------------------------------


class WorkerSaid(msgspec.Struct, frozen=True):
    message: FromWorker


class WorkerGone(msgspec.Struct, frozen=True):
    """The process ended, or it could not be started; `text` says how. Exactly one follows each StartWorker that was
    carried out.
    """

    text: str
    for_memory: bool = False
    """Did the kernel kill it because memory ran out? `text` has the figures then."""


class RdmaProved(msgspec.Struct, frozen=True):
    """Answers ProveTransport: what is wrong; empty where RDMA works."""

    number: int
    text: str


class MemoryWired(msgspec.Struct, frozen=True):
    """So much memory is wired on this host, by all programs together. May come every second or so, or never."""

    wired_bytes: int


class ModelProgress(msgspec.Struct, frozen=True):
    """So many bytes of the model's files are here, of all of them. May come about once a second after
    ResolveModel.
    """

    model: str
    done_bytes: int
    total_bytes: int


class ModelFound(msgspec.Struct, frozen=True):
    """Answers ResolveModel."""

    facts: ModelFacts


class ModelNotFound(msgspec.Struct, frozen=True):
    """Answers ResolveModel: there is no such model, or it cannot be read."""

    model: str
    code: str
    text: str


# --- inputs: clients and people -----------------------------------------------------------------------------


class ClientAsked(msgspec.Struct, frozen=True):
    """A client of this node wants this generated. Its id is unique among this node's requests. Answered by
    DeliverToken and DeliverKeepAlive, until one DeliverEnd or DeliverError.
    """

    request: GenerationRequest
    client: str = ""
    """Names who asks, so that clients take turns."""


class ClientLeft(msgspec.Struct, frozen=True):
    """The client went away before its end was delivered; nothing more is delivered. Harmless after the end."""

    request_id: str


class ClientStoppedReading(msgspec.Struct, frozen=True):
    """More is waiting for this client than the shell can keep: its generation is ended with an error."""

    request_id: str


class ModelWanted(msgspec.Struct, frozen=True):
    """A person wants this model hosted by the cluster; empty: none."""

    model: str


class RingKeyChanged(msgspec.Struct, frozen=True):
    """What ranks prove themselves with from the next formation on; a group that stands is not touched."""

    key: bytes


class WishChanged(msgspec.Struct, frozen=True):
    """A newer command of a person came: here, or with a peer's card."""

    wish: ClusterWish


class Leaving(msgspec.Struct, frozen=True):
    """The daemon ends: the worker is asked to leave by the shell, and its end is no crash."""


EngineInput = (
    PlanCommitted
    | PlanSuspended
    | LinkHealthChanged
    | RdmaWired
    | RdmaProved
    | PeerLost
    | PeerConnected
    | EngineMessageReceived
    | WorkerSaid
    | WorkerGone
    | MemoryWired
    | ModelProgress
    | ModelFound
    | ModelNotFound
    | ClientAsked
    | ClientLeft
    | ClientStoppedReading
    | ModelWanted
    | WishChanged
    | RingKeyChanged
    | Leaving
)


# --- commands: the worker and the model ---------------------------------------------------------------------


class ResolveModel(msgspec.Struct, frozen=True):
    """Find (or download) this model and read what it is. Answered by ModelFound or ModelNotFound."""

    model: str


class StopSearch(msgspec.Struct, frozen=True):
    """Nobody wants the model any more that is being found or downloaded: no answer is needed."""


class StartWorker(msgspec.Struct, frozen=True):
    """Adopt the process that an earlier daemon left, or start one. It is never given twice without a WorkerGone
    between.
    """


class KillWorker(msgspec.Struct, frozen=True):
    """WorkerGone follows; the command may be repeated until then."""

    text: str
    at_once: bool = False
    """It waits over RDMA and hears nothing: it is not asked first to free what it wired."""


class WakeWorker(msgspec.Struct, frozen=True):
    """Continue the process (SIGCONT), if it was stopped from outside."""


class LeaveWorker(msgspec.Struct, frozen=True):
    """Nothing is asked of the worker any more: let it leave its group, then end. WorkerGone follows."""


class TellWorker(msgspec.Struct, frozen=True):
    message: ToWorker


class ProveTransport(msgspec.Struct, frozen=True):
    """Run the proof of RDMA as this rank. RdmaProved follows."""

    number: int
    rank: int
    setup: RdmaSetup


class SweepWorkers(msgspec.Struct, frozen=True):
    """End a worker that an earlier daemon of this node left: none will be hosted here."""


# --- commands: other nodes ----------------------------------------------------------------------------------


class SendTo(msgspec.Struct, frozen=True):
    """To one other node. It may be lost."""

    node: NodeId
    message: EngineMessage


class TellAll(msgspec.Struct, frozen=True):
    """To every other node. It may be lost."""

    message: EngineMessage


class WishModel(msgspec.Struct, frozen=True):
    """Put this model on this node's card: it coordinates, or it is alone."""

    model: str


class AnnounceRingPort(msgspec.Struct, frozen=True):
    """Put this port on this node's card: the next plan's ring listens there."""

    port: int


class AnnounceUnfit(msgspec.Struct, frozen=True):
    """Put on this node's card why it cannot serve as a rank; empty: it can again."""

    text: str


class ChooseParallel(msgspec.Struct, frozen=True):
    """Put on this node's card how `engine.parallel = "auto"` runs this model on these ranks."""

    way: Literal["pipeline", "tensor"]
    model: str
    ranks: tuple[NodeId, ...]
    """In the order of their ids."""


# --- commands: people and clients ---------------------------------------------------------------------------


class EmitEvent(msgspec.Struct, frozen=True):
    """An event of the contract, about this node."""

    type: str
    data: dict[str, object]


class StatusChanged(msgspec.Struct, frozen=True):
    """Something that reports show of the engine changed."""


class LogIgnored(msgspec.Struct, frozen=True):
    """A message of this kind came from a node that may not send it, now or ever."""

    sender: NodeId
    kind: str


class DeliverToken(msgspec.Struct, frozen=True):
    """The next token of a client's answer: indices start at 0 and never skip or repeat."""

    request_id: str
    token: TokenOut


class DeliverKeepAlive(msgspec.Struct, frozen=True):
    """Nothing new came for a while; `text` says what is waited for."""

    request_id: str
    text: str


class DeliverEnd(msgspec.Struct, frozen=True):
    """The answer is complete. Nothing more is delivered."""

    request_id: str
    end: Finished


class DeliverError(msgspec.Struct, frozen=True):
    """The request cannot be served, or not to its end. Nothing more is delivered. `retry_after_s`: when it is worth
    asking again; None where that would not help.
    """

    request_id: str
    code: str
    text: str
    retry_after_s: float | None = None


EngineCommand = (
    ResolveModel
    | StopSearch
    | StartWorker
    | KillWorker
    | WakeWorker
    | LeaveWorker
    | TellWorker
    | ProveTransport
    | SweepWorkers
    | SendTo
    | TellAll
    | WishModel
    | AnnounceRingPort
    | AnnounceUnfit
    | ChooseParallel
    | EmitEvent
    | StatusChanged
    | LogIgnored
    | DeliverToken
    | DeliverKeepAlive
    | DeliverEnd
    | DeliverError
)


def is_only_output(event: EngineInput) -> bool:
    """Outputs that come for each token and change only its client's answer."""
    match event:
        case WorkerSaid(message=TokenOut()) | EngineMessageReceived(message=RelayedOutput()):
            return True
        case _:
            return False
