"""Frozen value types that every room shares. No behaviour beyond what follows from the fields.

Node ids are 16 lowercase hexadecimal digits, stable over restarts. Times named `at` are wall clock (Unix
seconds, for people); everything that is compared or subtracted is monotonic and never leaves its host.
"""

from __future__ import annotations

import functools
import ipaddress
from enum import StrEnum
from typing import Annotated, Final, NewType

import msgspec

from exod.plain_text import printable

MAX_SHOWN: Final = 1024
"""Characters of a text that a peer says about itself: the longest is a model's folder."""

MAX_COUNTER: Final = 1 << 62
"""Of incarnations, epoch numbers and whatever else orders messages: milliseconds since 1970 for 146 million years.
What is beyond is refused, for nobody could follow it: the counters have 8 bytes on the wire."""

Counter = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNTER)]

TOOK_WEIGHT: Final = 0.25
"""Of the newest answer in the mean of how long they take."""

SHORTEST_RETRY_S: Final = 1.0
"""Retry-After counts seconds."""

LONGEST_RETRY_S: Final = 60.0
"""Later than this a client is never told to come again: answers may be shorter by then."""

NodeId = NewType("NodeId", str)
"""16 lowercase hexadecimal digits."""

PathId = NewType("PathId", str)
"""`A.B.C.D-E.F.G.H`: the address on the node with the lower id first, so both ends name a path alike."""


class Kind(StrEnum):
    """What an interface is. The order of definition is the order of preference inside a latency band."""

    THUNDERBOLT = "thunderbolt"
    ETHERNET = "ethernet"
    WIFI = "wifi"
    VPN = "vpn"
    LOOPBACK = "loopback"
    OTHER = "other"


KIND_PREFERENCE: dict[Kind, int] = {kind: place for place, kind in enumerate(Kind)}


class PathState(StrEnum):
    INIT = "init"
    UP = "up"
    DEGRADED = "degraded"
    DEAD = "dead"


class NodeState(StrEnum):
    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


class MeshState(StrEnum):
    ALONE = "alone"
    FORMING = "forming"
    AGREED = "agreed"
    RENEGOTIATING = "renegotiating"


class EngineState(StrEnum):
    OFF = "off"
    LOADING = "loading"
    READY = "ready"
    GENERATING = "generating"
    RECOVERING = "recovering"
    FAILED = "failed"


class Health(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    DOWN = "down"


NETWORKS_KEPT: Final = 256
"""More than the interfaces of a host and of its peers. To make one takes 10 µs, and each rumour on multicast DNS is
compared with all of them."""


@functools.lru_cache(maxsize=NETWORKS_KEPT)
def _network(address: str, prefix: int) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network((address, prefix), strict=False)


class LocalAddress(msgspec.Struct, frozen=True, order=True):
    """One IPv4 address of an interface."""

    interface: str
    kind: Kind
    address: str
    prefix: int

    @property
    def network(self) -> ipaddress.IPv4Network:
        return _network(self.address, self.prefix)


class PathEnds(msgspec.Struct, frozen=True):
    """What this end's sockets of a path are bound to, and where they go."""

    interface: str
    local: str
    remote: str


class ThunderboltPort(msgspec.Struct, frozen=True):
    """One Thunderbolt receptacle. Empty strings and None stand for what the system did not say."""

    receptacle: str
    connected: bool | None
    speed: str
    interface: str
    """The port's own interface (`en5`); its bridge, where it has one, is another."""
    domain: str
    peer_name: str
    peer_domain: str
    """Set where the other end is a computer: it is that port's `domain` over there."""


class ContextSettings(msgspec.Struct, frozen=True):
    """How much context a model is hosted with, and how its KV cache is kept: alike on all ranks."""

    max_tokens: int = 0
    """0: what the model itself allows, and no memory is set aside for it."""
    kv_bits: int = 0
    """0: keys and values are not quantised."""
    kv_group_size: int = 64

    def __str__(self) -> str:
        tokens = f"at most {self.max_tokens} tokens" if self.max_tokens else "as long as the model allows"
        cache = f"{self.kv_bits} bits in groups of {self.kv_group_size}" if self.kv_bits else "not quantised"
        return f"{tokens}, KV cache {cache}"


class ClusterWish(msgspec.Struct, frozen=True):
    """What a person asked of the cluster by command: the newest of all nodes counts."""

    at: float
    """Unix seconds, rising with each command."""
    by: str
    """The name of the node that was asked."""
    model: str | None = None
    """The model to host; empty: none; None: no command has named one."""
    draining: bool = False
    """No more requests are admitted."""


class ParallelChoice(msgspec.Struct, frozen=True, order=True):
    """What `engine.parallel = "auto"` takes for a model on these ranks: the newest of all members' cards counts, so
    that it outlives the coordinator that made it.
    """

    number: Counter
    """Rises with each choice."""
    way: str
    """`pipeline` or `tensor`."""
    model: str
    ranks: tuple[NodeId, ...]
    """In the order of their ids."""


class NodeCard(msgspec.Struct, frozen=True):
    """What a node tells the others about itself: in the control plane's greeting and at each change."""

    id: NodeId
    name: str
    incarnation: int
    version: str
    mesh_port: int
    ring_port: int
    api_port: int
    addresses: tuple[LocalAddress, ...]
    engine: bool
    """Does this node host a rank?"""
    memory_mib: int
    """What the node gives to a model: the weight of its share of the layers."""
    model: str
    """The model that its configuration names; empty: no wish."""
    split: str | tuple[int, ...] = "memory"
    """`memory`, `even`, or a layer count for each rank: the coordinator's wish counts."""
    parallel: str = "auto"
    """`auto`, `pipeline` or `tensor`: the coordinator's wish counts."""
    nodes: str = "all"
    """`all`, or `fewest`: as few as hold the model, the others stand by. The coordinator's wish counts."""
    model_mib: int = 0
    """What `model` needs in all with its KV budget; 0: this node does not know it, or need not."""
    context: ContextSettings = ContextSettings()
    """The coordinator's wish counts."""
    pair_routes: tuple[str, ...] = ()
    """Remote addresses it reaches through a router (its static peers): candidates beside shared subnets."""
    choice: ParallelChoice | None = None
    """The newest that it knows of."""
    wish: ClusterWish | None = None
    """The newest command that it knows of."""
    hosted: str = ""
    """The model of its plan: it is kept while the node that named it is away."""
    unfit: str = ""
    """Why it cannot serve as a rank, though it would; empty where it can."""
    found_model: str = ""
    found_mib: int = 0
    """The model that it found last, and what that needs in all with its KV budget."""

    def __post_init__(self) -> None:
        """What a peer calls itself is shown on terminals: cleaned as soon as it is decoded."""
        for field in ("name", "version", "model", "unfit"):
            found = getattr(self, field)
            if (cleaned := printable(found, MAX_SHOWN)) != found:
                msgspec.structs.force_setattr(self, field, cleaned)


class PathSnapshot(msgspec.Struct, frozen=True):
    """One path as this end measures it: what every report of a path holds, and more specific ones extend."""

    id: PathId
    interface: str
    kind: Kind
    local: str
    remote: str
    state: PathState
    """The worse of what both ends say."""
    rtt_ms: float | None
    """The floor: the minimum over the newest window."""
    rtt_p90_ms: float | None
    loss: float
    """0 to 1, over the newest window: the worse direction."""
    selected: bool
    why: str
    """Why it is chosen, or why it is not, as text."""


class Selection(msgspec.Struct, frozen=True):
    """Which path a pair uses, as the pair's lower node selects it: a register that only grows.

    Compared by (incarnation_low, incarnation_high, seq); `path` is None where no path is usable.
    """

    incarnation_low: Counter
    incarnation_high: Counter
    seq: Counter
    path: PathId | None


class Epoch(msgspec.Struct, frozen=True, order=True):
    """Orders plans. `number` is one more than any that the coordinator has seen; the incarnation is the
    coordinator's own, so that two lives of one coordinator never share an epoch.
    """

    number: Counter
    coordinator_incarnation: Counter


class Member(msgspec.Struct, frozen=True, order=True):
    id: NodeId
    incarnation: Counter


class LeftOut(msgspec.Struct, frozen=True):
    """A live node that has no rank in a plan although it would host one."""

    node: NodeId
    name: str
    reason: str
    """For people."""
    stands_by: bool = False
    """Is that as it should be? It replaces a rank that is gone."""


class Edge(msgspec.Struct, frozen=True):
    """One directed edge between two ranks: `source` connects to `target` at `target_address:target_port`."""

    source: NodeId
    target: NodeId
    path: PathId
    source_interface: str
    source_address: str
    target_interface: str
    target_address: str
    target_port: int
    kind: Kind


class MeshPlan(msgspec.Struct, frozen=True):
    """What all members agreed on: who computes, in which order, over which addresses, with which shares.

    A plan of one member has no edges. `hash` is over everything else: ranks that run together share it.
    """

    epoch: Epoch
    coordinator: NodeId
    members: tuple[Member, ...]
    ring: tuple[NodeId, ...]
    """Rank order: rank k is ring[k]; only members that host a rank."""
    edges: tuple[Edge, ...]
    """From each rank to the next; and, for a tensor group, one between each two others, from the lower rank."""
    model: str
    split: str | tuple[int, ...]
    memory_mib: tuple[int, ...]
    """For each rank, what its node can give to a model."""
    hash: str
    context: ContextSettings = ContextSettings()
    parallel: str = "auto"
    left_out: tuple[LeftOut, ...] = ()
    """Members without a rank that would host one, and live nodes that the coordinator does not hear."""


class Reason(msgspec.Struct, frozen=True):
    """One reason why health is not healthy. `code` is stable, `text` is for people."""

    code: str
    subject: str
    text: str
    since: float


class PullRecord(msgspec.Struct, frozen=True):
    """A person asked by command that nodes have a model's files; of one model the newest record counts."""

    model: str
    """A repository's id, or a folder's absolute path on the node that was asked."""
    at: float
    """Unix seconds, rising with each command."""
    by: str
    """The name of the node that was asked."""
    everywhere: bool = False
    """On every node, instead of those that host ranks."""
    paused: bool = False


class ModelFetch(msgspec.Struct, frozen=True):
    """What one node has of a model that it was asked to have."""

    model: str
    state: str
    """`waiting`, `fetching`, `paused`, `failed` or `here`."""
    done_bytes: int = 0
    total_bytes: int = 0
    """0 while it is not known what belongs to the model."""
    bytes_per_s: int = 0
    sources: tuple[str, ...] = ()
    """Names of the nodes, and of the hub, that something came from."""
    asks_hub: bool = False
    """Does this node ask the hub just now?"""
    can_ask_hub: bool = False
    """Would it, if it were its turn?"""
    code: str = ""
    text: str = ""
    """Why it failed, or why it waits."""

    @property
    def left_s(self) -> float | None:
        """None where nothing comes."""
        left = self.total_bytes - self.done_bytes
        return round(left / self.bytes_per_s, 1) if self.bytes_per_s and left > 0 else None


class AnswerPace(msgspec.Struct, frozen=True):
    """How long answers take: what is told to who finds all places taken. Seconds."""

    took_s: float | None = None
    """The mean of late; None where no answer has ended yet."""

    def after(self, took_s: float) -> AnswerPace:
        mean_s = took_s if self.took_s is None else self.took_s
        return AnswerPace(mean_s + TOOK_WEIGHT * (took_s - mean_s))

    def next_end_s(self, elapsed_s: float) -> float | None:
        """Until the next answer ends, the oldest of which has gone on for so long; None where that is not known."""
        if self.took_s is None:
            return None
        # One that takes longer than most, being long or among many, goes on for half as long again.
        return _retry_s(self.took_s - elapsed_s if elapsed_s < self.took_s else elapsed_s / 2)

    def between_ends_s(self, at_once: int) -> float | None:
        """The mean time between two ends, of so many at once."""
        return None if self.took_s is None else _retry_s(self.took_s / at_once)


def _retry_s(left_s: float) -> float:
    return min(max(SHORTEST_RETRY_S, left_s), LONGEST_RETRY_S)


class Event(msgspec.Struct, frozen=True):
    """One entry of the event log. On the wire the fields of `data` lie beside the others."""

    ts: float
    type: str
    subject: str
    data: dict[str, object] = {}


def path_id(low_address: str, high_address: str) -> PathId:
    """The common name of a path: the address on the lower node id's side first."""
    return PathId(f"{low_address}-{high_address}")


def is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True
