"""macOS's tools, as they print on several machines, read into facts."""

from __future__ import annotations

import json

import pytest

from exod.model import Kind, ThunderboltPort
from exod.platform.darwin_text import (
    NetworkFacts,
    classify_interface,
    parse_disabled_services,
    parse_hardware_ports,
    parse_ifconfig,
    parse_nwi_primary,
    parse_service_names,
    parse_thunderbolt,
)

STUDIO_PORTS = """
Hardware Port: Ethernet
Device: en0
Ethernet Address: 02:00:5e:10:00:44

Hardware Port: Thunderbolt Ethernet Slot 1
Device: en10
Ethernet Address: 02:00:5e:10:00:96

Hardware Port: Ethernet Adapter (en6)
Device: en6
Ethernet Address: 02:00:5e:10:00:c6

Hardware Port: AX88179A
Device: en11
Ethernet Address: 02:00:5e:10:00:c7

Hardware Port: iPhone USB
Device: en12
Ethernet Address: 02:00:5e:10:00:c8

Hardware Port: Thunderbolt Bridge
Device: bridge0
Ethernet Address: 02:00:5e:10:00:00

Hardware Port: Wi-Fi
Device: en1
Ethernet Address: 02:00:5e:10:00:99

Hardware Port: Thunderbolt 1
Device: en2
Ethernet Address: 02:00:5e:10:00:01

Hardware Port: Thunderbolt 4
Device: en5
Ethernet Address: 02:00:5e:10:00:0c

VLAN Configurations
===================

VLAN User Defined Name: storage
Parent Device: en0
Device ("Hardware" Port): vlan0
Tag: 20
"""

SERVICE_ORDER = """An asterisk (*) denotes that a network service is disabled.
(1) Ethernet
(Hardware Port: Ethernet, Device: en0)

(2) Ethernet Adapter (en6)
(Hardware Port: Ethernet Adapter (en6), Device: en6)

(*) Thunderbolt Bridge
(Hardware Port: Thunderbolt Bridge, Device: bridge0)

(*4) Old Wi-Fi
(Hardware Port: Wi-Fi, Device: en1)

(5) Wi-Fi
(Hardware Port: Wi-Fi, Device: en1)

(*) Work VPN
(Hardware Port: L2TP, Device: )

(6) Tailscale
(Hardware Port: com.example.vpn, Device: )
"""

IFCONFIG = """lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384 index 1
\toptions=1203<RXCSUM,TXCSUM,TXSTATUS,SW_TIMESTAMP>
\tinet 127.0.0.1 netmask 0xff000000
en5: flags=8963<UP,BROADCAST,SMART,RUNNING,PROMISC,SIMPLEX,MULTICAST> mtu 1500 index 12
\tether 02:00:5e:10:00:0c
\tmedia: autoselect <full-duplex>
\tstatus: active
\ttype: Ethernet
bridge1: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500 index 18
\tConfiguration:
\t\tid 0:0:0:0:0:0 priority 0 hellotime 0 fwddelay 0
\tmember: en2 flags=3<LEARNING,DISCOVER>
\t        ifmaxaddr 0 port 9 priority 0 path cost 0
\tmember: en5 flags=3<LEARNING,DISCOVER>
\t        ifmaxaddr 0 port 12 priority 0 path cost 0
\tstatus: active
bridge100: flags=8a63<UP,BROADCAST,SMART,RUNNING,ALLMULTI,SIMPLEX,MULTICAST> mtu 1500 index 30
\tmember: vmenet0 flags=10003<LEARNING,DISCOVER,CSUM>
\tstatus: active
utun0: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1500 index 20
\tagent domain:com.apple.rapport type:RapportNetworkAgent flags:0x7c3 desc:"Rapport Network Agent"
en9: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1280 index 24
\txflags=10004<NOAUTONX,IS_VPN>
\tinet 10.8.0.2 --> 10.8.0.1 netmask 0xffffffff
en8: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1280 index 25
\tagent domain:Skywalk type:NetIf flags:0x8443 desc:"Userspace Networking"
\tagent domain:NetworkExtension type:VPN flags:0xf desc:"VPN: Tailscale"
\teffective interface: en0
en7: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500 index 26
\ttype: Wi-Fi
"""

STUDIO = NetworkFacts(
    ports=parse_hardware_ports(STUDIO_PORTS),
    disabled=parse_disabled_services(SERVICE_ORDER),
    interfaces=parse_ifconfig(IFCONFIG),
)


@pytest.mark.parametrize(
    ("name", "addresses", "kind"),
    [
        ("bridge0", ["192.168.4.21"], Kind.THUNDERBOLT),
        ("en2", ["169.254.7.1"], Kind.THUNDERBOLT),
        ("en5", [], Kind.THUNDERBOLT),
        ("bridge1", ["10.9.0.1"], Kind.THUNDERBOLT),  # a bridge of Thunderbolt ports that a person made
        ("bridge100", ["192.168.64.1"], Kind.OTHER),  # virtual machines
        ("en0", ["10.0.0.2"], Kind.ETHERNET),
        ("en0", ["100.70.0.2"], Kind.ETHERNET),  # a carrier's address on hardware is still hardware
        ("en10", [], Kind.ETHERNET),  # a Thunderbolt adapter for Ethernet is Ethernet
        ("en6", [], Kind.ETHERNET),
        ("en11", [], Kind.ETHERNET),
        ("vlan0", ["10.0.20.2"], Kind.ETHERNET),
        ("en1", ["10.0.0.3"], Kind.WIFI),
        ("en7", ["10.0.0.4"], Kind.WIFI),
        ("en12", ["172.20.10.2"], Kind.OTHER),
        ("en8", ["10.8.0.3"], Kind.VPN),  # marked by its agent
        ("en9", ["10.8.0.2"], Kind.VPN),  # marked by its flags
        ("utun4", ["100.87.1.2"], Kind.VPN),
        ("utun0", [], Kind.VPN),
        ("xyz3", ["100.87.1.2"], Kind.VPN),
        ("lo0", ["127.0.0.1"], Kind.LOOPBACK),
        ("awdl0", [], Kind.OTHER),
        ("llw0", [], Kind.OTHER),
        ("anpi1", [], Kind.OTHER),
        ("xyz3", ["10.0.0.9"], Kind.OTHER),
    ],
)
def test_an_interface_is_what_its_hardware_says_then_its_marks_then_its_name(
    name: str, addresses: list[str], kind: Kind
) -> None:
    assert classify_interface(STUDIO, name, addresses)[0] is kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bridge0", Kind.THUNDERBOLT), ("en5", Kind.ETHERNET), ("utun3", Kind.VPN), ("lo0", Kind.LOOPBACK)],
)
def test_without_any_answer_from_the_tools_names_have_to_do(name: str, kind: Kind) -> None:
    assert classify_interface(NetworkFacts(), name, [])[0] is kind


def test_a_disabled_service_is_said_and_one_enabled_service_enables_the_device() -> None:
    assert parse_disabled_services(SERVICE_ORDER) == {"bridge0"}
    assert "disabled" in classify_interface(STUDIO, "bridge0", [])[1]
    assert "disabled" not in classify_interface(STUDIO, "en1", [])[1]


def test_a_service_has_the_name_that_it_was_given_on_this_mac() -> None:
    german = SERVICE_ORDER.replace(") Thunderbolt Bridge", ") Thunderbolt-Brücke")
    assert parse_service_names(german)["bridge0"] == "Thunderbolt-Brücke"
    assert "bridge0" not in parse_service_names(SERVICE_ORDER.replace(") Thunderbolt Bridge", ') My "$(cable)"'))
    assert parse_disabled_services(german) == {"bridge0"}


def test_hardware_ports_survive_empty_blocks_and_windows_of_missing_lines() -> None:
    assert parse_hardware_ports("") == {}
    assert parse_hardware_ports("Hardware Port: Wi-Fi\nEthernet Address: N/A\n\nDevice: en3\n") == {"en3": "Wi-Fi"}
    assert parse_hardware_ports("Device: en3\n") == {}
    assert parse_hardware_ports("Hardware Port: Bluetooth PAN\nDevice: \n") == {}


def bus(**keys: object) -> dict[str, object]:
    return {"_name": "thunderboltusb5_bus_3", "device_name_key": "Mac Studio", **keys}


CONNECTED = {
    "current_speed_key": "80 Gb/s",
    "link_status_key": "0x2",
    "receptacle_id_key": "4",
    "receptacle_status_key": "receptacle_connected",
}
EMPTY = {
    "current_speed_key": "Up to 120 Gb/s",
    "link_status_key": "0x100",
    "receptacle_id_key": "1",
    "receptacle_status_key": "receptacle_no_devices_connected",
}


def thunderbolt(*buses: object) -> tuple[ThunderboltPort, ...]:
    return parse_thunderbolt(json.dumps({"SPThunderboltDataType": buses}), parse_hardware_ports(STUDIO_PORTS))


def test_a_cable_to_another_mac_names_both_ends() -> None:
    peer = {"_name": "Mac Studio", "device_name_key": "studio2", "domain_uuid_key": "BBBB"}
    (port,) = thunderbolt(bus(domain_uuid_key="AAAA", receptacle_1_tag=CONNECTED, _items=[peer]))
    assert port == ThunderboltPort("4", True, "80 Gb/s", "en5", "AAAA", "studio2", "BBBB")


def test_an_empty_receptacle_is_not_connected() -> None:
    (port,) = thunderbolt(bus(domain_uuid_key="AAAA", receptacle_1_tag=EMPTY))
    assert (port.connected, port.interface, port.peer_domain) == (False, "en2", "")


def test_a_dock_is_no_peer_but_a_mac_behind_it_is() -> None:
    dock = {"device_name_key": "Dock", "switch_uid_key": "0x1", "mode_key": "usb_four"}
    (port,) = thunderbolt(bus(receptacle_1_tag=CONNECTED, _items=[dock]))
    assert port.peer_domain == ""
    behind = {**dock, "_items": [{"device_name_key": "studio2", "domain_uuid_key": "BBBB"}]}
    (port,) = thunderbolt(bus(receptacle_1_tag=CONNECTED, _items=[behind]))
    assert port.peer_domain == "BBBB"


def test_two_receptacles_on_a_bus_share_no_guess() -> None:
    peer = {"device_name_key": "studio2", "domain_uuid_key": "BBBB"}
    both = thunderbolt(bus(receptacle_1_tag=EMPTY, receptacle_2_tag=CONNECTED, _items=[peer]))
    assert [port.peer_domain for port in both] == ["", "BBBB"]
    unsure = thunderbolt(bus(receptacle_1_tag=CONNECTED, receptacle_2_tag=CONNECTED, _items=[peer]))
    assert [port.peer_domain for port in unsure] == ["", ""]


def test_missing_keys_are_unknown_and_nonsense_is_nothing() -> None:
    (port,) = thunderbolt(bus(receptacle_1_tag={"receptacle_status_key": "receptacle_unheard_of"}))
    assert port == ThunderboltPort("", None, "", "", "", "", "")
    assert thunderbolt(bus(), "bus", None) == ()  # a virtual machine's bus has no receptacle
    for text in ("", "[]", "{}", "not json", '{"SPThunderboltDataType": "none"}', '{"SPThunderboltDataType": []}'):
        assert parse_thunderbolt(text, {}) == ()


def test_nwi_names_the_primary_interface_of_ipv4() -> None:
    nwi = """Network information

IPv4 network interface information
     en0 : flags      : 0x7 (IPv4,IPv6,DNS)
           address    : 10.0.0.2
           reach      : 0x00000002 (Reachable)
   utun4 : flags      : 0x5 (IPv4,DNS)
           address    : 100.87.1.2

   REACH : flags 0x00000002 (Reachable)

IPv6 network interface information
     en1 : flags      : 0x6 (IPv6,DNS)

Network interfaces: en0 utun4
"""
    assert parse_nwi_primary(nwi) == "en0"
    offline = (
        "Network information\n\nIPv4 network interface information\n   No IPv4 states found\n\n"
        "IPv6 network interface information\n     en1 : flags      : 0x6 (IPv6,DNS)\n"
    )
    assert parse_nwi_primary(offline) is None
    assert parse_nwi_primary("") is None
