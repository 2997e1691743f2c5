"""Interfaces that change under running daemons: renamed, removed and added again, numbered anew, routed elsewhere.

Two nodes without an engine. "Without a restart" is checked by pid and incarnation; avahi gives a second opinion on
multicast DNS.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import avahi
from tests.lab.cluster import Cluster
from tests.lab.conftest import skip_or_fail
from tests.lab.node import Node, wait_for
from tests.lab.pairs import CONFIG, new_pair, path_of, start_afresh, wait_joined
from tests.lab.reading import Status, selected_path
from tests.lab.topology import Host, Lab

pytestmark = pytest.mark.lab

NOTICED_WITHIN_S = 10.0
RETURNS_WITHIN_S = 30.0  # a hold-up that doubled twice, and patience with a busy machine
MENDED_WITHIN_S = 30.0  # routes are checked every 10 s
BROWSED_WITHIN_S = 20.0
SERVICE = "_exod._tcp"
MENDING = re.compile(r"mend it: sudo (ip route add .*)$")


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


def test_two_interfaces_on_one_subnet_make_the_wrong_route_ineligible_and_its_command_mends_it(
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
    statuses = wait_joined(pair, "ethernet", MENDED_WITHIN_S)
    for node, status in zip(pair.nodes, statuses, strict=True):
        cable = path_of(status, "bridge0")
        assert cable["state"] == "up", "probes leave by the cable; only the ring's connections would not"
        assert "ineligible" in cable["why"]
        assert "not from bridge0" in cable["why"]
        assert f"mend it: sudo ip route add {cable['remote']}/32 dev bridge0" in cable["why"]
        assert "path_ineligible" in {reason["code"] for reason in status["reasons"]}
        said = " ".join(node.exoctl("links").stdout.split())
        assert "not eligible" in said
        assert f"mend it: sudo ip route add {cable['remote']}/32 dev bridge0 src {cable['local']}" in said

    for node, status in zip(pair.nodes, statuses, strict=True):
        run_mending_command(node.host, path_of(status, "bridge0"))
    wait_joined(pair, "thunderbolt", MENDED_WITHIN_S)


def test_self_assigned_addresses_on_two_cables_make_one_of_them_ineligible(pair: Cluster) -> None:
    kinds = CONFIG["mesh"]["kinds"] | {"en0": "thunderbolt"}
    for node in pair.nodes:
        node.configure(CONFIG | {"mesh": {"kinds": kinds}})
        number = node.host.number
        node.host.ip(
            f"addr del 192.168.4.2{number}/24 dev bridge0",
            f"addr del 10.77.0.{number}/24 dev en0",
            f"addr add 169.254.10.{number}/16 dev bridge0",
            f"addr add 169.254.20.{number}/16 dev en0",
        )
    pair.start()
    statuses = wait_joined(pair, "thunderbolt")
    for status in statuses:
        path = selected_path(status, status["links"][0]["peer_name"])
        assert path is not None
        assert path["local"].startswith("169.254.10."), "the connected route that was there first leads to bridge0"

    def both_called_ineligible() -> bool:
        found = pair.statuses()
        return found is not None and all("ineligible" in direct_path(one, "169.254.20.")["why"] for one in found)

    wait_for(both_called_ineligible, NOTICED_WITHIN_S, f"en0's path is ineligible\n{pair.report()}")
    for node, status in zip(pair.nodes, pair.statuses() or [], strict=True):
        run_mending_command(node.host, direct_path(status, "169.254.20."))
    wait_for(
        lambda: all("ineligible" not in direct_path(one, "169.254.20.")["why"] for one in pair.statuses() or []),
        MENDED_WITHIN_S,
        f"en0's path is eligible\n{pair.report()}",
    )


def direct_path(status: Status, network: str) -> dict[str, Any]:
    """The path whose both ends lie in that part of 169.254/16: one cable's."""
    (link,) = status["links"]
    found = [
        path for path in link["paths"] if path["local"].startswith(network) and path["remote"].startswith(network)
    ]
    assert found, f"no path within {network}: {link['paths']}"
    path: dict[str, Any] = found[0]
    return path


def run_mending_command(host: Host, path: dict[str, Any]) -> None:
    """Does what `why` says, as a person would."""
    command = MENDING.search(path["why"])
    assert command is not None, path["why"]
    host.run(shlex.split(command[1]))
