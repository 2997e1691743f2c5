"""What goes into the core and what comes out of it. Frozen values both ways; `now` is a parameter beside them.

Services turn what they see into an Input and carry out the Commands that come back. `now` is monotonic seconds.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from exod.core.base.mesh_messages import MeshMessage
from exod.model import Event, MeshPlan, NodeCard, NodeId, PathEnds, PathId

# --- inputs -------------------------------------------------------------------------------------------------


class CardChanged(msgspec.Struct, frozen=True):
    """This node's own card changed: an interface came or went, an address changed."""

    card: NodeCard


class PeerCardReceived(msgspec.Struct, frozen=True):
    """A peer's card, over an authenticated control connection."""

    card: NodeCard


class PeerLeft(msgspec.Struct, frozen=True):
    """A peer said goodbye: it is down now, without any deadline."""

    peer: NodeId
    incarnation: int


class DatagramReceived(msgspec.Struct, frozen=True):
    """`received_at` is the kernel's receive stamp on the monotonic clock, or the time of the read."""

    local_address: str
    remote_address: str
    data: bytes
    received_at: float


class DatagramSent(msgspec.Struct, frozen=True):
    """`sent_at` is None where the stamps around the call were too wide: no RTT is taken from its echo."""

    path: PathId
    peer: NodeId
    seq: int
    sent_at: float | None


class SendFailed(msgspec.Struct, frozen=True):
    """The kernel refused a datagram (no route, interface down, permission)."""

    path: PathId
    peer: NodeId
    errno: int


class MessageReceived(msgspec.Struct, frozen=True):
    peer: NodeId
    message: MeshMessage


class PeerConnected(msgspec.Struct, frozen=True):
    """There is at least one control connection to this peer now (and there was none)."""

    peer: NodeId


class PeerDisconnected(msgspec.Struct, frozen=True):
    """The last control connection to this peer is gone."""

    peer: NodeId


class RingFault(StrEnum):
    """What an edge's end saw of its connection to the next rank."""

    UNANSWERED = "unanswered"
    """Nobody answered the connection's first packet."""
    REFUSED = "refused"
    """The port refused it, or reset it, although the neighbour forms the same group."""
    SILENT = "silent"
    """It was made and took bytes that nobody acknowledged."""
    SLOW = "slow"
    MOVED = "moved"
    """No fault: so many bytes went through."""


class RingEvidence(msgspec.Struct, frozen=True):
    """What this node's rank saw of its connection to `peer`, its neighbour in the plan with this hash. `fault` is
    a RingFault; `seconds` are what `moved_bytes` took.
    """

    plan_hash: str
    peer: NodeId
    fault: str
    moved_bytes: int = 0
    seconds: float = 0.0


class RouteChecked(msgspec.Struct, frozen=True):
    """Where our own sockets of the path leave: None where they cannot connect."""

    peer: NodeId
    path: PathId
    leaves_from: str | None


class RenegotiateRequested(msgspec.Struct, frozen=True):
    """A person asks for a new plan."""

    reason: str


class ForgetPeer(msgspec.Struct, frozen=True):
    """A person says that this node will not come back. One that is not down stays."""

    peer: NodeId


class DebugFault(msgspec.Struct, frozen=True):
    """A person makes this node treat a path as lossy or slow for a while (config switch only)."""

    path: PathId
    drop: bool
    delay_ms: float
    for_s: float


class DebugPin(msgspec.Struct, frozen=True):
    path: PathId
    for_s: float


class KeysChanged(msgspec.Struct, frozen=True):
    """The MAC keys that peers may use now, the newest first. A peer is sent the one it had until it is known to
    have the newest, and is believed by no older one from then on.
    """

    keys: tuple[bytes, ...]


class PeerHoldsKey(msgspec.Struct, frozen=True):
    """The peer has the newest key."""

    peer: NodeId


class ActivityChanged(msgspec.Struct, frozen=True):
    """Whether anything is generated or queued here, or was within the last half minute: while nobody waits for the
    links, they are probed less often. Until the first of these they are probed as if somebody did.
    """

    busy: bool


class LoopLagged(msgspec.Struct, frozen=True):
    """The event loop (or the whole process, where it is stopped) ran late by `lag_s`: deadlines are extended by it.

    Always handed in before the datagrams that waited in the sockets, and those before any timer.
    """

    lag_s: float


class HostSlept(msgspec.Struct, frozen=True):
    """The host slept. Monotonic time stood still meanwhile, so nothing is late: for texts alone."""

    slept_s: float


Input = (
    CardChanged
    | PeerCardReceived
    | PeerLeft
    | DatagramReceived
    | DatagramSent
    | SendFailed
    | MessageReceived
    | PeerConnected
    | PeerDisconnected
    | RouteChecked
    | RingEvidence
    | RenegotiateRequested
    | ForgetPeer
    | DebugFault
    | DebugPin
    | ActivityChanged
    | KeysChanged
    | PeerHoldsKey
    | LoopLagged
    | HostSlept
)

# --- commands -----------------------------------------------------------------------------------------------


class SendDatagram(msgspec.Struct, frozen=True):
    """Send `data` from `local_address` (bound to `interface`) to `remote_address:remote_port`, then hand
    DatagramSent back. `delay_s` is a debug fault's.
    """

    peer: NodeId
    path: PathId
    seq: int
    interface: str
    local_address: str
    remote_address: str
    remote_port: int
    data: bytes
    delay_s: float = 0.0


class SendMessage(msgspec.Struct, frozen=True):
    """Send over the best control connection to this peer. May be lost: the core repeats what matters."""

    peer: NodeId
    message: MeshMessage


class CheckRoute(msgspec.Struct, frozen=True):
    """Find where a socket that is bound as this path's are leaves, and hand RouteChecked back."""

    peer: NodeId
    path: PathId
    remote_address: str
    ends: PathEnds


class Emit(msgspec.Struct, frozen=True):
    """Write this to the event log. `ts` is 0: the shell stamps it with the wall clock."""

    event: Event


class CommitPlan(msgspec.Struct, frozen=True):
    """Unanimous: the engine runs by this plan from now on."""

    plan: MeshPlan
    reason: str
    detect_ms: float | None
    agree_ms: float


class SuspendPlan(msgspec.Struct, frozen=True):
    """The committed plan cannot be used just now (an edge died, a member went): abort collectives at once and
    wait for the next CommitPlan.
    """

    plan_hash: str
    reason: str


class PersistEpoch(msgspec.Struct, frozen=True):
    """Best effort: the highest epoch number seen, so that numbers grow over restarts."""

    number: int


class LogRejected(msgspec.Struct, frozen=True):
    """A datagram was not accepted. The shell logs it, once a minute for each code at most."""

    remote_address: str
    code: str
    text: str


class RaiseIncarnation(msgspec.Struct, frozen=True):
    """A peer knows a higher incarnation of this node than its own (its state file was lost or restored, and the
    clock went back): persist one above `seen`, with fsync, and hand it in with CardChanged.
    """

    seen: int


Command = (
    SendDatagram
    | SendMessage
    | CheckRoute
    | Emit
    | CommitPlan
    | SuspendPlan
    | PersistEpoch
    | RaiseIncarnation
    | LogRejected
)
