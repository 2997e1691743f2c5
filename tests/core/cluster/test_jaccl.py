"""JACCL's configuration as data: from who is cabled to whom to MLX's hostfile, and why there is none."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import msgspec
import pytest

from exod.core.cluster.jaccl import CabledNode, NotCabledError, hostfile, meeting_address
from exod.model import Kind, LocalAddress, ThunderboltPort
from tests.core.pair.cards import card


def port(interface: str, domain: str, peer: str = "", *, connected: bool | None = True) -> ThunderboltPort:
    return ThunderboltPort(interface[2:], connected, "80 Gb/s", interface, domain, "a Mac" if peer else "", peer)


def cabled(size: int, cables: list[tuple[int, int]]) -> list[CabledNode]:
    """Nodes with one port for each cable (en2, en3, …), and one that is free."""
    ports: list[list[ThunderboltPort]] = [[port("en9", f"free{rank}", connected=False)] for rank in range(size)]
    for number, (i, j) in enumerate(cables):
        for mine, theirs in ((i, j), (j, i)):
            interface = f"en{1 + len(ports[mine])}"
            ports[mine].append(port(interface, f"{number}-{mine}", f"{number}-{theirs}"))
    return [CabledNode(f"studio{i + 1}", f"10.0.0.{i + 1}", tuple(found)) for i, found in enumerate(ports)]


def matrix(nodes: list[CabledNode]) -> list[list[object]]:
    """As MLX reads it: MLX_IBV_DEVICES is the rows of the hostfile."""
    return [host["rdma"] for host in json.loads(msgspec.json.encode(hostfile(nodes)))["hosts"]]


def test_two_nodes_and_a_cable() -> None:
    assert json.loads(msgspec.json.encode(hostfile(cabled(2, [(0, 1)])))) == {
        "backend": "jaccl",
        "envs": [],
        "hosts": [
            {"ssh": "studio1", "ips": ["10.0.0.1"], "rdma": [None, "rdma_en2"]},
            {"ssh": "studio2", "ips": ["10.0.0.2"], "rdma": ["rdma_en2", None]},
        ],
    }


def test_three_nodes_each_name_their_own_port() -> None:
    assert matrix(cabled(3, [(0, 1), (1, 2), (0, 2)])) == [
        [None, "rdma_en2", "rdma_en3"],
        ["rdma_en2", None, "rdma_en3"],
        ["rdma_en3", "rdma_en2", None],
    ]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_full_mesh_is_a_matrix_that_mlx_takes(size: int, tmp_path: Path) -> None:
    from mlx._distributed_utils.common import Hostfile

    nodes = cabled(size, list(combinations(range(size), 2)))
    file = tmp_path / "hosts.json"
    file.write_bytes(msgspec.json.encode(hostfile(nodes)))
    read = Hostfile.from_file(file)
    assert read.backend == "jaccl"
    assert [host.ssh_hostname for host in read.hosts] == [node.name for node in nodes]
    for rank, host in enumerate(read.hosts):
        assert len(host.rdma) == size
        assert host.rdma[rank] is None
        others = [device for device in host.rdma if device is not None]
        assert len(set(others)) == size - 1, "a port serves one peer"


def test_several_cables_of_a_pair_are_named_in_the_same_order_at_both_ends() -> None:
    nodes = cabled(2, [(0, 1), (0, 1)])
    assert matrix(nodes) == [[None, ["rdma_en2", "rdma_en3"]], [["rdma_en2", "rdma_en3"], None]]
    first, second = nodes
    crossed = [port("en2", "1-1", "1-0"), port("en3", "0-1", "0-0")]
    nodes[1] = msgspec.structs.replace(second, ports=tuple(crossed))
    assert matrix([first, nodes[1]]) == [[None, ["rdma_en2", "rdma_en3"]], [["rdma_en3", "rdma_en2"], None]]


def test_all_pairs_get_as_many_cables_as_the_poorest_has() -> None:
    assert matrix(cabled(3, [(0, 1), (0, 1), (1, 2), (0, 2)]))[0] == [None, "rdma_en2", "rdma_en4"]


def test_an_end_that_does_not_know_its_peer_is_found_by_the_other() -> None:
    first, second = cabled(2, [(0, 1)])
    blind = tuple(msgspec.structs.replace(one, peer_domain="", connected=None) for one in second.ports)
    assert matrix([first, msgspec.structs.replace(second, ports=blind)]) == [[None, "rdma_en2"], ["rdma_en2", None]]
    two = (*blind, port("en7", "0-1"))  # one bus, two receptacles: which of them it is, nobody says
    with pytest.raises(NotCabledError, match="between studio1 and studio2"):
        hostfile([first, msgspec.structs.replace(second, ports=two)])


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (cabled(1, []), "this one is alone"),
        (cabled(2, []), "between studio1 and studio2: JACCL needs one between each two"),
        (cabled(3, [(0, 1), (1, 2)]), "between studio1 and studio3"),
        (cabled(4, [(0, 1), (1, 2), (2, 3), (3, 0)]), "between studio1 and studio3, studio2 and studio4"),
        ([*cabled(2, [(0, 1)]), CabledNode("linux", "10.0.0.3", ())], "no Thunderbolt port is known on linux"),
        ([CabledNode("a", "", (port("", "x", "y"),)), CabledNode("b", "", (port("en2", "y", "x"),))], "a and b"),
    ],
)
def test_what_is_not_fully_cabled_is_refused_in_one_line(nodes: list[CabledNode], words: str) -> None:
    with pytest.raises(NotCabledError, match=words) as caught:
        hostfile(nodes)
    assert "\n" not in str(caught.value)


def test_ranks_meet_where_rdma_does_not_run() -> None:
    addresses = (
        LocalAddress("bridge0", Kind.THUNDERBOLT, "192.168.4.1", 24),
        LocalAddress("utun4", Kind.VPN, "100.64.0.1", 10),
        LocalAddress("en0", Kind.ETHERNET, "10.0.0.1", 24),
    )
    mine = msgspec.structs.replace(card(1), addresses=addresses)
    assert meeting_address(mine) == "10.0.0.1"
    assert meeting_address(msgspec.structs.replace(mine, addresses=addresses[:2])) == "192.168.4.1"
    assert meeting_address(msgspec.structs.replace(mine, addresses=())) == ""
