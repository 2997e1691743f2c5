"""Interfaces that change under running daemons: renamed, removed and added again, numbered anew, routed elsewhere.

Two nodes without an engine. "Without a restart" is checked by pid and incarnation; avahi gives a second opinion on
multicast DNS.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import avahi
from tests.lab.cluster import Cluster
from tests.lab.conftest import skip_or_fail
from tests.lab.node import Node, wait_for
from tests.lab.pairs import joined_on, new_pair, start_afresh, wait_joined
from tests.lab.reading import Status, selected_path
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

NOTICED_WITHIN_S = 10.0
RETURNS_WITHIN_S = 30.0  # a hold-up that doubled twice, and patience with a busy machine
MENDED_WITHIN_S = 30.0  # routes are checked every 10 s
BROWSED_WITHIN_S = 20.0
SERVICE = "_exod._tcp"


@pytest.fixture
def pair() -> Iterator[Cluster]:
    with Lab(2) as lab:
        yield new_pair(lab)


def test_a_changing_interface_is_followed_without_a_restart(pair: Cluster) -> None:
    if missing := avahi.missing_tools():
        skip_or_fail(f"install avahi-daemon, avahi-utils and dbus: no {', '.join(missing)}")
    before = start_afresh(pair)
    host, cable = pair.lab.host(1), pair.lab.link("bridge0")
    pids = [node.pid for node in pair.nodes]
    with avahi.Avahi(pair.lab.host(2), pair.lab.folder) as browser:
        wait_announced(browser, before[0], {"192.168.4.21", "10.77.0.1"})

        host.rename("bridge0", "bridge9")
        wait_for(lambda: uses(pair.node(1), "bridge9"), RETURNS_WITHIN_S, f"bridge9 is used\n{pair.report()}")
        wait_joined(pair, "thunderbolt", RETURNS_WITHIN_S)

        cable.remove()
        wait_joined(pair, "ethernet", NOTICED_WITHIN_S)
        wait_announced(browser, before[0], {"10.77.0.1"})
        cable.make()
        wait_joined(pair, "thunderbolt", RETURNS_WITHIN_S)
        assert uses(pair.node(1), "bridge0")

        host.remove_address("bridge0", "192.168.4.21/24")
        host.add_address("bridge0", "192.168.4.31/24")
        wait_for(
            lambda: uses(pair.node(2), "bridge0", remote="192.168.4.31"),
            RETURNS_WITHIN_S,
            f"the new address is used\n{pair.report()}",
        )
        wait_joined(pair, "thunderbolt", RETURNS_WITHIN_S)
        wait_announced(browser, before[0], {"192.168.4.31", "10.77.0.1"})
        host.down("en0")
        wait_announced(browser, before[0], {"192.168.4.31"})

    after = wait_joined(pair, "thunderbolt")
    assert [node.pid for node in pair.nodes if node.running] == pids
    assert [one["node"]["incarnation"] for one in after] == [one["node"]["incarnation"] for one in before]
    for node in pair.nodes:
        assert "Traceback" not in node.log_text(), node.log_tail()


def wait_announced(browser: avahi.Avahi, status: Status, addresses: set[str]) -> None:
    """Waits until the other host's avahi resolves this node to some of these addresses and to no other. Of several
    it names one for each interface, as it likes: only a single one proves that it is announced.
    """
    seen: set[str] = set()

    def resolved_to_these() -> bool:
        nonlocal seen
        seen = {entry["address"] for entry in browser.browse(SERVICE) if status["node"]["id"] in entry["name"]}
        return bool(seen) and seen <= addresses

    try:
        wait_for(resolved_to_these, BROWSED_WITHIN_S, "")
    except AssertionError:
        raise AssertionError(f"mDNS gives {seen} where only {addresses} are true") from None


def uses(node: Node, interface: str, **fields: Any) -> bool:
    """Whether the selected path leaves from `interface`, and is as the fields say."""
    status = node.poll_status()
    if status is None or not status["links"]:
        return False
    path = selected_path(status, status["links"][0]["peer_name"])
    return path is not None and all(
        path[name] == value for name, value in ({"interface": interface} | fields).items()
    )


def test_of_two_interfaces_on_one_subnet_the_cable_is_used_though_the_route_table_prefers_the_other(
    pair: Cluster,
) -> None:
    start_afresh(pair)
    for number in (1, 2):
        host = pair.lab.host(number)
        # Ethernet gets addresses of the cable's subnet, and the kernel's first choice for it.
        host.ip(
            f"addr add 192.168.4.12{number}/24 dev en0",
            "route del 192.168.4.0/24 dev bridge0",
            f"route add 192.168.4.0/24 dev bridge0 src 192.168.4.2{number} metric 100",
        )

    def settled(statuses: list[Status]) -> bool:
        paths = [path for status in statuses for path in status["links"][0]["paths"]]
        doubles = [path for path in paths if path["local"].startswith("192.168.4.12") and path["state"] == "up"]
        return joined_on(statuses, "thunderbolt") and len(doubles) >= 2

    statuses = pair.wait_until(settled, MENDED_WITHIN_S, "the cable is used, and Ethernet's new addresses are up")
    for node, status in zip(pair.nodes, statuses, strict=True):
        assert uses(node, "bridge0", local=f"192.168.4.2{node.host.number}")
        assert "path_ineligible" not in {reason["code"] for reason in status["reasons"]}
        assert "not eligible" not in node.exoctl("links").stdout


def test_a_self_assigned_address_that_changes_is_a_new_path_of_the_same_pair(pair: Cluster) -> None:
    for node in pair.nodes:
        number = node.host.number
        node.host.ip(
            f"addr del 192.168.4.2{number}/24 dev bridge0",
            f"addr add 169.254.20.{number}/16 dev en0",
            f"addr add 169.254.10.{number}/16 dev bridge0",
        )
    pair.start()
    before = wait_joined(pair, "thunderbolt")
    pair.lab.host(1).remove_address("bridge0", "169.254.10.1/16")
    pair.lab.host(1).add_address("bridge0", "169.254.77.7/16")
    wait_for(
        lambda: (
            uses(pair.node(1), "bridge0", local="169.254.77.7")
            and uses(pair.node(2), "bridge0", remote="169.254.77.7")
        ),
        RETURNS_WITHIN_S,
        f"the new address is used\n{pair.report()}",
    )
    after = wait_joined(pair, "thunderbolt")
    for earlier, later in zip(before, after, strict=True):
        assert [node["id"] for node in later["nodes"]] == [node["id"] for node in earlier["nodes"]]
        assert later["node"]["incarnation"] == earlier["node"]["incarnation"]
        assert later["links"][0]["selected"] != earlier["links"][0]["selected"]
