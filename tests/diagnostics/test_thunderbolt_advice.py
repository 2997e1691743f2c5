"""What a person with a Thunderbolt cable is told: each case with what to do about it."""

from __future__ import annotations

from exod.daemon_api.shapes import InterfaceLine
from exod.diagnostics.thunderbolt_advice import check_thunderbolt
from exod.model import Kind, ThunderboltPort

ETHERNET = InterfaceLine("en0", Kind.ETHERNET, "", True, ("192.168.1.20/24",), True, "")


def bridge(*addresses: str, eligible: bool = True) -> InterfaceLine:
    return InterfaceLine("bridge0", Kind.THUNDERBOLT, "", True, addresses, eligible, "")


def port(receptacle: str, peer: str = "studio2", connected: bool = True) -> ThunderboltPort:
    return ThunderboltPort(receptacle, connected, "", f"en{receptacle}", "A", peer, "B" if peer else "")


def test_two_macs_on_the_default_bridge_may_have_fixed_addresses() -> None:
    used, addresses = check_thunderbolt([port("1")], [ETHERNET, bridge("169.254.7.1/16")], "en0")
    assert used.ok
    assert addresses.ok
    assert addresses.cure.startswith(
        'sudo networksetup -setmanual "Thunderbolt Bridge" 10.254.0.1 255.255.255.252; on the other Mac'
    )


def test_with_fixed_addresses_there_is_nothing_to_say() -> None:
    (used,) = check_thunderbolt([port("1")], [ETHERNET, bridge("10.254.0.1/30")], "en0")
    assert used.ok


def test_a_bridge_that_is_missing_is_brought_back_with_the_ports_own_device() -> None:
    (check,) = check_thunderbolt([port("3")], [ETHERNET], "en0")
    assert not check.ok
    assert "bridge0 is missing" in check.text
    assert "Manage Virtual Interfaces" in check.cure
    assert (
        "sudo ifconfig bridge0 create; sudo ifconfig bridge0 addm en3 up; sudo ipconfig set bridge0 DHCP"
        in check.cure
    )


def test_a_bridge_that_is_off_is_switched_on() -> None:
    (check,) = check_thunderbolt([port("3")], [ETHERNET, bridge(eligible=False)], "en0")
    assert check.cure.startswith('sudo networksetup -setnetworkserviceenabled "Thunderbolt Bridge" on; ')


def test_a_bridge_without_ipv4_is_named_with_its_cure() -> None:
    (check,) = check_thunderbolt([port("3")], [ETHERNET, bridge(eligible=False)], "en0")
    assert "no IPv4 address, and exod speaks IPv4 alone" in check.text
    assert check.cure.endswith('sudo networksetup -setdhcp "Thunderbolt Bridge"')


def test_commands_name_the_service_as_this_mac_does() -> None:
    (check,) = check_thunderbolt([port("3")], [ETHERNET, bridge(eligible=False)], "en0", "Thunderbolt-Brücke")
    assert check.cure.startswith('sudo networksetup -setnetworkserviceenabled "Thunderbolt-Brücke" on; ')


def test_three_macs_in_a_ring_are_told_how_to_open_it() -> None:
    cables = [port("1"), port("2", "studio3")]
    *_, ring = check_thunderbolt(cables, [ETHERNET, bridge("10.254.0.1/24")], "en0")
    assert "no loop protection" in ring.text
    assert "unplug one cable" in ring.cure
    assert 'sudo networksetup -setnetworkserviceenabled "Thunderbolt Bridge" off' in ring.cure


def test_a_bridge_with_the_default_route_or_the_lans_subnet_is_wrong() -> None:
    _, routed = check_thunderbolt([port("1")], [ETHERNET, bridge("192.168.9.7/24")], "bridge0")
    assert not routed.ok
    assert "default route" in routed.text
    _, twin = check_thunderbolt([port("1")], [ETHERNET, bridge("192.168.1.99/24")], "en0")
    assert not twin.ok
    assert "the subnet that en0 is in" in twin.text
    assert "-setmanual" in twin.cure


def test_self_assigned_addresses_on_two_interfaces_are_no_shared_subnet() -> None:
    wifi = InterfaceLine("en1", Kind.WIFI, "", True, ("169.254.3.3/16",), True, "")
    assert all(check.ok for check in check_thunderbolt([port("1")], [wifi, bridge("169.254.7.1/16")], None))


def test_ports_that_report_nothing_come_with_what_helps_where_a_cable_is_in() -> None:
    (check,) = check_thunderbolt([port("1", "", False), port("2", "", False)], [ETHERNET], "en0")
    assert check.ok
    assert "restart both Macs" in check.cure
    assert check_thunderbolt([], [ETHERNET], "en0") == []
