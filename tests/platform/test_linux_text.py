"""What sysfs and proc say, read into kinds."""

from __future__ import annotations

import pytest

from exod.model import Kind
from exod.platform.linux_text import LinkFacts, classify_link, parse_default_route

ETHERNET = "1\n"


@pytest.mark.parametrize(
    ("link", "addresses", "kind"),
    [
        (LinkFacts("lo", "772\n"), ["127.0.0.1"], Kind.LOOPBACK),
        (LinkFacts("enp3s0", ETHERNET, driver="igc", has_device=True), ["10.0.0.2"], Kind.ETHERNET),
        (LinkFacts("enp3s0", ETHERNET, driver="igc", has_device=True), ["100.70.0.2"], Kind.ETHERNET),
        (LinkFacts("thunderbolt0", ETHERNET, driver="thunderbolt-net", has_device=True), [], Kind.THUNDERBOLT),
        (LinkFacts("tb", ETHERNET, driver="thunderbolt-net", has_device=True), [], Kind.THUNDERBOLT),
        (LinkFacts("thunderbolt1", ETHERNET), [], Kind.THUNDERBOLT),
        (LinkFacts("bridge0", ETHERNET, is_tunnel_device=True), ["192.168.4.21"], Kind.THUNDERBOLT),
        (LinkFacts("bridge0", ETHERNET, "DEVTYPE=bridge\n", is_bridge=True), ["10.0.0.2"], Kind.OTHER),
        (
            LinkFacts("wlp2s0", ETHERNET, "DEVTYPE=wlan\nINTERFACE=wlp2s0\n", has_device=True),
            ["10.0.0.3"],
            Kind.WIFI,
        ),
        (LinkFacts("wlan0", ETHERNET, has_device=True, is_wireless=True), [], Kind.WIFI),
        (LinkFacts("tailscale0", "65534\n", is_tunnel_device=True), ["100.87.1.2"], Kind.VPN),
        (LinkFacts("home", "65534\n", "DEVTYPE=wireguard\n"), ["10.8.0.2"], Kind.VPN),
        (LinkFacts("utun4", ETHERNET, is_tunnel_device=True), ["100.64.0.1"], Kind.VPN),
        (LinkFacts("veth5", ETHERNET), ["100.64.0.1"], Kind.VPN),
        (LinkFacts("sit0", "776\n"), [], Kind.VPN),
        (LinkFacts("zt7nnig26", ETHERNET), ["10.147.17.4"], Kind.VPN),
        (LinkFacts("docker0", ETHERNET, "DEVTYPE=bridge\n", is_bridge=True), ["172.17.0.1"], Kind.OTHER),
        (
            LinkFacts("br0", ETHERNET, "DEVTYPE=bridge\n", is_bridge=True, has_physical_member=True),
            ["10.0.0.2"],
            Kind.ETHERNET,
        ),
        (LinkFacts("ifb0", ETHERNET), [], Kind.OTHER),
        (LinkFacts("en0", ETHERNET), ["10.77.0.1"], Kind.ETHERNET),  # a container's or a namespace's Ethernet
        (LinkFacts("bond0", ETHERNET, "DEVTYPE=bond\n"), ["10.0.0.2"], Kind.ETHERNET),
        (LinkFacts("can0", "280\n"), [], Kind.OTHER),
        (LinkFacts("gone0"), [], Kind.OTHER),
    ],
)
def test_a_link_is_what_its_hardware_says_then_its_type_then_its_name(
    link: LinkFacts, addresses: list[str], kind: Kind
) -> None:
    assert classify_link(link, addresses)[0] is kind


def test_the_default_route_with_the_lowest_metric_is_primary() -> None:
    table = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlp2s0\t00000000\t0100000A\t0003\t0\t0\t600\t00000000\t0\t0\t0
enp3s0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000080\t0\t0\t0
enp3s0\t0000000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""
    assert parse_default_route(table) == "enp3s0"
    assert parse_default_route("") is None
    assert parse_default_route("Iface\tDestination\nbroken line\n") is None
