"""Reports of plausible nodes, for tests of what shows them: a healthy pair, one node alone, a lost peer."""

from __future__ import annotations

import msgspec

from exod.daemon_api.shapes import (
    ClusterSummary,
    EdgeLine,
    EngineSummary,
    LinkDetail,
    LinkLine,
    LinksReport,
    MeshChange,
    MeshSummary,
    MqttSummary,
    NodeLine,
    PathDetail,
    RankLine,
    StatusReport,
    SyncMode,
    ThisNode,
)
from exod.model import (
    EngineState,
    Health,
    Kind,
    MeshState,
    NodeId,
    NodeState,
    PathId,
    PathSnapshot,
    PathState,
    Reason,
)

HERE = NodeId("1a2b3c4d5e6f7081")
PEER = NodeId("9f8e7d6c5b4a3921")
CABLE = PathId("10.0.0.1-10.0.0.2")
ETHERNET = PathId("192.168.7.11-192.168.7.12")
VPN = PathId("100.64.0.1-100.64.0.2")
STARTED_AT = 1_750_000_000.0
MODEL = "embedded:count"


def pair_status() -> StatusReport:
    """Two nodes, the cable chosen on both ends, the model on both, all healthy."""
    version = "0.1.0"
    paths = (
        PathSnapshot(
            CABLE,
            "bridge0",
            Kind.THUNDERBOLT,
            "10.0.0.1",
            "10.0.0.2",
            PathState.UP,
            0.312,
            0.448,
            0.0,
            True,
            "in use: best of 3: ethernet comes after thunderbolt",
        ),
        PathSnapshot(
            ETHERNET,
            "en0",
            Kind.ETHERNET,
            "192.168.7.11",
            "192.168.7.12",
            PathState.UP,
            0.251,
            0.402,
            0.0,
            False,
            "thunderbolt is preferred inside one band",
        ),
        PathSnapshot(
            VPN,
            "utun4",
            Kind.VPN,
            "100.64.0.1",
            "100.64.0.2",
            PathState.DEGRADED,
            44.1,
            46.8,
            0.01,
            False,
            "44.1 ms is over 5 ms",
        ),
    )
    return StatusReport(
        node=ThisNode(HERE, "studio1", 1_750_000_000_123, version, 11_543.2),
        health=Health.HEALTHY,
        reasons=(),
        cluster=ClusterSummary("home", 2),
        nodes=(
            NodeLine(HERE, "studio1", NodeState.UP, True, 1_750_000_000_123, version),
            NodeLine(PEER, "studio2", NodeState.UP, False, 1_750_000_000_456, version),
        ),
        links=(LinkLine(PEER, "studio2", True, CABLE, 17, paths),),
        mesh=MeshSummary(
            MeshState.AGREED,
            7,
            HERE,
            "3fa9c1d2e5b60718",
            (HERE, PEER),
            (
                EdgeLine(HERE, PEER, "bridge0", Kind.THUNDERBOLT, "10.0.0.2:52420"),
                EdgeLine(PEER, HERE, "bridge0", Kind.THUNDERBOLT, "10.0.0.1:52420"),
            ),
            MeshChange(STARTED_AT - 125.0, "bridge0 held for 3 s and is better than en0", 184.2, 41.7),
        ),
        engine=EngineSummary(
            EngineState.READY,
            MODEL,
            (RankLine(HERE, 0, (0, 4), 4711, 0), RankLine(PEER, 1, (4, 8), 815, 1)),
            SyncMode("fast", "10 tokens in the cache, waits of 0.2 ms"),
            312.4,
            330.0,
            214.0,
        ),
        mqtt=MqttSummary("connected", "embedded on 127.0.0.1:1883"),
        api="http://127.0.0.1:52415",
    )


def vpn_only_status() -> StatusReport:
    """The same pair with the cable and Ethernet gone: a VPN carries the ring, and the text says so."""
    status = pair_status()
    (link,) = status.links
    cable, ethernet, vpn = link.paths
    link = msgspec.structs.replace(
        link,
        selected=VPN,
        seq=19,
        paths=(
            msgspec.structs.replace(
                cable, state=PathState.DEAD, selected=False, loss=1.0, rtt_ms=None, rtt_p90_ms=None, why="silent"
            ),
            msgspec.structs.replace(ethernet, state=PathState.DEAD, loss=1.0, why="interface en0 is down"),
            msgspec.structs.replace(vpn, selected=True, why="floor 44.1 ms is over 5 ms; in use: bridge0 is dead"),
        ),
    )
    text = (
        "the only path to studio2 is the VPN on utun4 at 44.1 ms: over 5 ms, the model will be slow. "
        "Plug the Thunderbolt cable in, or check en0"
    )
    return msgspec.structs.replace(
        status,
        health=Health.DEGRADED,
        reasons=(Reason("link.slow", "studio2", text, STARTED_AT - 12.0),),
        links=(link,),
    )


def alone_status() -> StatusReport:
    """One node that has found no other; its engine still loads."""
    status = pair_status()
    return msgspec.structs.replace(
        status,
        cluster=ClusterSummary("home", 1),
        nodes=status.nodes[:1],
        links=(),
        mesh=MeshSummary(MeshState.ALONE, None, None, None, (), (), None),
        engine=EngineSummary(
            EngineState.LOADING,
            MODEL,
            (),
            SyncMode("safe", "nothing was measured yet"),
            None,
            None,
            None,
            "2.1 of 4.0 MiB read",
        ),
        mqtt=MqttSummary("connecting", "broker.lan:1883", "connection refused"),
    )


def peer_gone_status(*, left: bool) -> StatusReport:
    """The pair after the other node fell silent, or said goodbye: its last figures are still known."""
    status = pair_status()
    here, peer = status.nodes
    (link,) = status.links
    paths = tuple(
        msgspec.structs.replace(path, state=PathState.DEAD, why="dead: studio2 is down") for path in link.paths
    )
    reason = Reason("node_down", PEER, "studio2 is down: silent for 1.0 s and disconnected", STARTED_AT - 5.0)
    return msgspec.structs.replace(
        status,
        health=Health.HEALTHY if left else Health.DEGRADED,
        reasons=() if left else (reason,),
        cluster=ClusterSummary("home", 1),
        nodes=(here, msgspec.structs.replace(peer, state=NodeState.DOWN, left=left)),
        links=(msgspec.structs.replace(link, agreed=False, paths=paths),),
        mesh=MeshSummary(
            MeshState.ALONE,
            8,
            HERE,
            "9bff7272385b581e",
            (HERE,),
            (),
            MeshChange(STARTED_AT - 5.0, "studio2 left" if left else "studio2 is down", 1015.2, None),
        ),
        engine=msgspec.structs.replace(status.engine, ranks=(RankLine(HERE, 0, (0, 8), 4711, 0),)),
    )


def links_of(status: StatusReport, peer_text: str = "silent for 1.0 s and disconnected") -> LinksReport:
    return LinksReport(
        tuple(
            LinkDetail(
                link.peer,
                link.peer_name,
                next(node.state for node in status.nodes if node.id == link.peer),
                link.agreed,
                link.selected,
                link.seq,
                link.selected if link.agreed else None,
                link.seq if link.agreed else None,
                True,
                tuple(
                    PathDetail(
                        path.id,
                        path.interface,
                        path.kind,
                        path.local,
                        path.remote,
                        path.state,
                        path.rtt_ms,
                        path.rtt_p90_ms,
                        path.loss,
                        path.selected,
                        path.why,
                        score_ms=None if path.rtt_ms is None else path.rtt_ms + 0.07,
                        in_band=None if path.rtt_ms is None else path.rtt_ms <= 5,
                        peer_state=path.state,
                        samples=10,
                        last_heard_s=0.04,
                    )
                    for path in link.paths
                ),
                next(node.left for node in status.nodes if node.id == link.peer),
                peer_text,
            )
            for link in status.links
        ),
        at=STARTED_AT,
    )
