"""The ring's connections stay on the plan's interfaces. Two ranks of this host meet over loopback."""

from __future__ import annotations

import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from exoengine.protocol import Prepare
from exoengine.ring.rendezvous import Edges, meet
from exoengine.ring.ring_plan import FormError, RingPlan

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
DEADLINE_S = 20.0
SO_BINDTODEVICE = 25


def plans(interface: str) -> list[RingPlan]:
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        hosts = tuple(f"127.0.0.1:{probe.getsockname()[1]}" for probe in (one, other))
    return [RingPlan("p", 1, rank, 2, hosts, b"k", "127.0.0.1", "", interface, interface) for rank in range(2)]


def met(plan: RingPlan) -> Edges:
    wake, other = socket.socketpair()
    with wake, other:
        return meet(plan, time.monotonic() + DEADLINE_S, lambda: None, wake)


@pytest.mark.parametrize("interface", [LOOPBACK, ""])
def test_ranks_meet_on_the_interface_that_the_plan_names(interface: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(met, plans(interface)))
    for connection in [one for edges in found for one in edges.all()]:
        if sys.platform == "linux":
            bound = connection.getsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, 16).rstrip(b"\0")
            assert bound == interface.encode(), "the accepted ones, too"
        connection.close()


def test_an_interface_that_is_gone_is_no_place_to_listen() -> None:
    with pytest.raises(FormError, match=r"cannot listen on 127\.0\.0\.1") as refused:
        met(plans("gone0")[0])
    assert refused.value.code == "listen"


def test_a_prepare_of_an_older_daemon_binds_nothing() -> None:
    older = {"type": "prepare", "plan_hash": "p", "attempt": 1, "rank": 0, "size": 1, "hosts": []}
    told = msgspec.convert(older, Prepare)
    assert (told.connect_interface, told.listen_interface) == ("", "")
