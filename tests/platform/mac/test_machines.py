"""The Macs in a box: what exod makes of each, through the tools' outputs and through programs that print them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from exod.cli.report import contents
from exod.cli.report.redaction import Redaction
from exod.daemon_api.shapes import InterfaceLine
from exod.diagnostics.mac_findings import of_sleep
from exod.diagnostics.thunderbolt_advice import check_thunderbolt
from exod.model import Kind
from exod.network.interface_rules import InterfaceRules, SeenInterface, Verdict, judge
from exod.platform.commands import CommandOutputs, run_command
from exod.platform.darwin import Darwin
from exod.platform.darwin_text import parse_hardware_ports, parse_ifconfig, parse_nwi_primary, parse_thunderbolt
from exod.platform.raw_outputs import DARWIN
from tests.platform.mac.machines import (
    BRIDGE_OFF,
    M1_WIFI_ONLY,
    M2_ONE_CABLE,
    M2_VIRTUAL,
    M3_TWO_CABLES,
    M4_DOCK,
    M4_NO_BRIDGE,
    M4_TRIANGLE,
    M5_VPN,
    MACS,
    Mac,
)

pytestmark = pytest.mark.anyio


async def platform_of(mac: Mac) -> Darwin:
    async def answer(argv: tuple[str, ...]) -> str | None:
        return mac.outputs.get(argv)

    darwin = Darwin(CommandOutputs(answer))
    await darwin.refresh()
    return darwin


def verdicts(mac: Mac, darwin: Darwin) -> dict[str, Verdict]:
    found = {}
    for name, address in mac.addresses.items():
        plain, _, prefix = address.partition("/")
        seen = SeenInterface(name, True, ((plain, int(prefix)),))
        found[name] = judge(seen, darwin.classify(name, [plain]), InterfaceRules())
    return found


def lines(mac: Mac, darwin: Darwin) -> list[InterfaceLine]:
    found = [
        InterfaceLine(one.name, one.kind, "", True, (mac.addresses[one.name],), bool(one.usable), one.why)
        for one in verdicts(mac, darwin).values()
    ]
    if mac.bridge and "bridge0" not in mac.addresses:
        found.append(InterfaceLine("bridge0", Kind.THUNDERBOLT, "", True, (), False, "it has no IPv4 address"))
    return found


@pytest.mark.parametrize(
    ("mac", "kinds"),
    [
        (M1_WIFI_ONLY, {"en0": Kind.WIFI}),
        (M2_VIRTUAL, {"en0": Kind.ETHERNET}),
        (M2_ONE_CABLE, {"bridge0": Kind.THUNDERBOLT, "en0": Kind.ETHERNET}),
        (M3_TWO_CABLES, {"bridge0": Kind.THUNDERBOLT, "en0": Kind.ETHERNET}),
        (M4_TRIANGLE, {"bridge0": Kind.THUNDERBOLT, "en0": Kind.ETHERNET}),
        (M4_DOCK, {"bridge0": Kind.THUNDERBOLT, "en0": Kind.WIFI}),
        (M4_NO_BRIDGE, {"en0": Kind.ETHERNET}),
        (M5_VPN, {"en0": Kind.WIFI, "utun4": Kind.VPN}),
        (BRIDGE_OFF, {"en0": Kind.ETHERNET}),
    ],
    ids=MACS,
)
async def test_each_interface_is_what_it_is_and_can_be_used(mac: Mac, kinds: dict[str, Kind]) -> None:
    found = verdicts(mac, await platform_of(mac))
    assert {name: one.kind for name, one in found.items()} == kinds
    assert all(one.usable for one in found.values())


@pytest.mark.parametrize(
    ("mac", "peers"),
    [
        (M1_WIFI_ONLY, []),
        (M2_VIRTUAL, []),
        (M2_ONE_CABLE, [("1", "en2", "studio2")]),
        (M3_TWO_CABLES, [("1", "en2", "studio2"), ("2", "en3", "studio3")]),
        (M4_DOCK, [("2", "en3", "studio2")]),
        (M4_NO_BRIDGE, [("1", "en2", "mini2")]),
    ],
)
async def test_each_cable_is_found_with_its_port_and_its_other_end(
    mac: Mac, peers: list[tuple[str, str, str]]
) -> None:
    ports = await (await platform_of(mac)).thunderbolt()
    assert [(one.receptacle, one.interface, one.peer_name) for one in ports if one.peer_name] == peers


@pytest.mark.parametrize(
    ("mac", "words"),
    [
        (M1_WIFI_ONLY, ["no receptacle reports a device"]),
        (M2_VIRTUAL, []),
        (M2_ONE_CABLE, ["carried by bridge0", "self-assigned address"]),
        (M3_TWO_CABLES, ["carried by bridge0", "carried by bridge0", "no loop protection"]),
        (M4_TRIANGLE, ["carried by bridge0", "carried by bridge0", "no loop protection", "self-assigned address"]),
        (M4_DOCK, ["carried by bridge0", "self-assigned address"]),
        (M4_NO_BRIDGE, ["bridge0 is missing"]),
        (M5_VPN, ["no receptacle reports a device"]),
        (BRIDGE_OFF, ["bridge0 is down, switched off or has no IPv4 address"]),
    ],
    ids=MACS,
)
async def test_netcheck_says_of_each_cabling_what_there_is_to_say(mac: Mac, words: list[str]) -> None:
    darwin = await platform_of(mac)
    checks = check_thunderbolt(await darwin.thunderbolt(), lines(mac, darwin), await darwin.primary_interface())
    assert len(checks) == len(words)
    for check, said in zip(checks, words, strict=True):
        assert said in check.text


async def test_a_bridge_that_is_switched_off_is_known_to_be() -> None:
    darwin = await platform_of(BRIDGE_OFF)
    assert "its network service is disabled" in darwin.classify("bridge0", []).why


@pytest.mark.parametrize("mac", MACS.values(), ids=MACS)
async def test_the_default_route_and_sleep_are_read(mac: Mac) -> None:
    assert await (await platform_of(mac)).primary_interface() == mac.primary
    assert bool(of_sleep(mac.pmset())) == bool(mac.sleep_minutes)


async def test_programs_that_print_the_same_are_understood_alike(tmp_path: Path) -> None:
    mac = M3_TWO_CABLES
    mac.executables(tmp_path)

    async def run(argv: tuple[str, ...]) -> str | None:
        return await run_command((str(tmp_path / Path(argv[0]).name), *argv[1:]))

    darwin, told = Darwin(CommandOutputs(run)), await platform_of(mac)
    assert await darwin.refresh()
    assert await darwin.thunderbolt() == await told.thunderbolt()
    assert verdicts(mac, darwin) == verdicts(mac, told)
    assert await run(("/usr/sbin/networksetup", "-setmanual", "x")) is None


def test_a_report_of_each_mac_holds_what_our_parsers_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong guess of a parser can be mended from the archive alone: what it holds reads as the Mac itself."""
    mac = M3_TWO_CABLES
    mac.executables(tmp_path)
    run = subprocess.run

    def in_the_box(argv: Sequence[str], **more: Any) -> Any:
        return run([str(tmp_path / Path(argv[0]).name), *argv[1:]], **more)

    monkeypatch.setattr(contents.subprocess, "run", in_the_box)
    redact = Redaction(people=("anna",), hosts=("studio1",))
    parts = {part.name: redact(part.text) for part in contents.outputs(DARWIN)}
    assert all("[exit code 0]" in text for text in parts.values()), parts
    told = {name: text.partition("[exit code 0]\n")[2] for name, text in parts.items()}
    ports = parse_hardware_ports(told["system/networksetup-listallhardwareports.txt"])
    assert ports == parse_hardware_ports(mac.hardware_ports())
    assert parse_ifconfig(told["system/ifconfig-v.txt"]) == parse_ifconfig(mac.ifconfig())
    assert parse_nwi_primary(told["system/scutil-nwi.txt"]) == mac.primary
    found = parse_thunderbolt(told["system/system_profiler-SPThunderboltDataType-json.txt"], ports)
    assert [one.peer_name for one in found if one.peer_name] == ["[person]", "[person]"]
    direct = parse_thunderbolt(mac.thunderbolt(), ports)
    assert [one.peer_domain for one in found] == [one.peer_domain for one in direct]
    assert [one.speed for one in found] == [one.speed for one in direct]
