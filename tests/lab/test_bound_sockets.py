"""The cable as it comes out of the box: addresses of 169.254/16 on several interfaces, against the route table.

On both hosts the unbound route to the peer's address leads elsewhere. Probes, control connections and the ring are
bound, so the cable carries the ring all the same: seen in the frames themselves.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.lab.cluster import Cluster
from tests.lab.node import KINDS, RING_PORTS, wait_for
from tests.lab.pairs import path_of
from tests.lab.reading import can_serve, selected_path
from tests.lab.topology import Host, Lab

pytestmark = pytest.mark.lab

JOINED_WITHIN_S = 60.0
TWO_CABLES = {"kinds": KINDS | {"en0": "thunderbolt"}}
ETH_P_ALL = 3
ETH_P_IP = 0x0800
ETHERNET_BYTES = 14


@contextmanager
def ring_frames(host: Host, interface: str) -> Iterator[Callable[[], int]]:
    """Counts this interface's frames to and from the ring's ports: a function that gives how many came since."""
    with host.entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with tap:
        tap.setblocking(False)
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        tap.bind((interface, ETH_P_ALL))
        yield lambda: sum(map(is_of_the_ring, waiting(tap)))


def waiting(tap: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            yield tap.recv(128)
        except BlockingIOError:
            return


def is_of_the_ring(frame: bytes) -> bool:
    kind = int.from_bytes(frame[12:14], "big")
    if kind != ETH_P_IP or frame[ETHERNET_BYTES + 9] != socket.IPPROTO_TCP:
        return False
    ports = ETHERNET_BYTES + 4 * (frame[ETHERNET_BYTES] & 0x0F)
    return bool(set(struct.unpack(">HH", frame[ports : ports + 4])) & set(RING_PORTS))


def self_assigned(host: Host) -> None:
    """bridge0 and en0 in 169.254/16, and the kernel's first choice for it is en0. en0 keeps its LAN address."""
    number = host.number
    host.ip(
        f"addr del 192.168.4.2{number}/24 dev bridge0",
        f"addr add 169.254.20.{number}/16 dev en0",
        f"addr add 169.254.10.{number}/16 dev bridge0",
        "route del 169.254.0.0/16 dev bridge0",
        f"route add 169.254.0.0/16 dev bridge0 src 169.254.10.{number} metric 100",
    )


def two_cables(host: Host) -> None:
    """As above, and en0 is a second cable, without another address."""
    self_assigned(host)
    host.ip(f"addr del 10.77.0.{host.number}/24 dev en0")


def with_an_alias(host: Host) -> None:
    """As above, and the cable has a second address of the same subnet."""
    self_assigned(host)
    host.ip(f"addr add 169.254.30.{host.number}/16 dev bridge0")


def carriers(cluster: Cluster) -> set[str]:
    """The interfaces of the paths in use, of both ends."""
    return {
        path["interface"]
        for status in cluster.statuses() or []
        if (path := selected_path(status, status["links"][0]["peer_name"])) is not None
    }


def others_carry(counted: dict[tuple[int, str], Callable[[], int]], used: str) -> bool:
    """Do frames of the ring pass over another interface, within half a second?"""
    others = [count for (_, interface), count in counted.items() if interface != used]
    for count in others:
        count()
    time.sleep(0.5)
    return any(count() for count in others)


@pytest.mark.parametrize(
    ("prepare", "mesh"),
    [(self_assigned, {}), (two_cables, TWO_CABLES), (with_an_alias, {})],
    ids=["ethernet has it too", "two cables", "an alias"],
)
def test_the_cable_carries_the_ring_against_the_route_table(
    prepare: Callable[[Host], None], mesh: dict[str, object]
) -> None:
    with Lab(2) as lab, ExitStack() as taps:
        for host in lab.hosts:
            prepare(host)
        counted = {
            (host.number, interface): taps.enter_context(ring_frames(host, interface))
            for host in lab.hosts
            for interface in ("bridge0", "en0", "utun4")
        }
        cluster = Cluster(lab, config={"mesh": mesh, "mqtt": {"broker": "off"}})
        cluster.start()
        cluster.wait_until(
            lambda found: (
                all(can_serve(one) and one["mesh"]["state"] == "agreed" for one in found)
                and carriers(cluster) in ({"bridge0"}, {"en0"} if mesh else {"bridge0"})
                and all(one["mesh"]["edges"] for one in found)
            ),
            JOINED_WITHIN_S,
            "both ends use one cable and can serve",
        )
        (used,) = carriers(cluster)
        wait_for(
            lambda: not others_carry(counted, used), JOINED_WITHIN_S, "connections of earlier tries have ended"
        )
        before = {key: count() for key, count in counted.items()}
        assert cluster.node(1).chat("count from 3 to 60").split() == [str(n) for n in range(3, 61)]
        (after,) = carriers(cluster)
        assert after == used
        for (number, interface), count in counted.items():
            frames = count()
            assert (frames > 0) == (interface == used), f"host {number}, {interface}: {frames}; before: {before}"
        for status in cluster.statuses() or []:
            assert "ineligible" not in path_of(status, used)["why"]
            assert {edge["interface"] for edge in status["mesh"]["edges"]} == {used}
