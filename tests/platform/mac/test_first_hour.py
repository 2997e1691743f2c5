"""docs/first-hour.md against the program: each screen in it that can be made here is what is printed.

A screen is a fenced block below a line `<!-- screen: NAME -->`. `python -m tests.platform.mac.test_first_hour`
writes them all anew, after a text was changed; one that the document lacks goes to its end.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from exod.cli.base.paint import Paint
from exod.cli.screens.engine import doctor_screen
from exod.cli.screens.links import netcheck_screen
from exod.cli.service import verbs as service
from exod.cli.service.host import CommandResult, ServiceError
from exod.core.status.local_network import denied_text
from exod.daemon_api.shapes import DoctorReport, Finding, InterfaceLine, NetcheckReport, NetworkCheck
from exod.diagnostics.mac_findings import of_denied, of_protected_folders, of_sleep
from exod.diagnostics.thunderbolt_advice import check_thunderbolt
from exod.model import Kind, ThunderboltPort
from launchd.supported import complaint
from tests.cli.test_self_check import Started, checked, folder_of
from tests.cli.test_service import UID, Launchd, mac
from tests.cli.test_service_app import Mac, with_library
from tests.platform.mac import hours
from tests.platform.mac.hours import WIDTH

DOCUMENT = Path(__file__).parents[3] / "docs" / "first-hour.md"

ETHERNET = InterfaceLine("en0", Kind.ETHERNET, "", True, ("192.168.1.20/24",), True, "")
CABLE = ThunderboltPort("1", True, "80 Gb/s", "en1", "A", "studio2", "B")
SECOND_CABLE = ThunderboltPort("2", True, "80 Gb/s", "en2", "A", "studio3", "C")
NO_IPV4 = InterfaceLine("bridge0", Kind.THUNDERBOLT, "", True, (), False, "")
EMPTY_PORT = ThunderboltPort("1", False, "", "en1", "A", "", "")


def bridge(address: str) -> InterfaceLine:
    return InterfaceLine("bridge0", Kind.THUNDERBOLT, "", True, (address,), True, "")


PLAIN = Paint(color=False, unicode=True)


def on_the_screen(checks: Sequence[NetworkCheck]) -> str:
    """The last of these checks, as `exoctl netcheck` prints it below the interfaces."""
    _, _, *lines = netcheck_screen(NetcheckReport((), (checks[-1],)), PLAIN, WIDTH)
    return "\n".join(lines)


def by_doctor(*findings: Finding) -> str:
    lines = doctor_screen(DoctorReport(findings, ()), PLAIN, WIDTH)
    return "\n".join(line for line in lines if not line.startswith("looked at"))


def service_screens() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        machine = Mac()
        host = with_library(machine, Path(folder))
        yield "service install", service.install(host=host).replace(folder, "")
        yield "service status", service.status(host=host)[0].replace(folder, "")
        yield "service upgrade", service.upgrade(host=host).replace(folder, "")
        yield "service uninstall", service.uninstall(host=host).replace(folder, "")
        yield from system_screens(Path(folder))
        machine.domains.discard(f"gui/{UID}")
        machine.bootstrap_answers = [CommandResult(5, err="Bootstrap failed: 5: Input/output error\n")] * 20
        with pytest.raises(ServiceError) as raised:
            service.install(host=host)
        yield "service refused", f"exoctl: {raised.value}".replace(folder, "")


def system_screens(folder: Path) -> Iterator[tuple[str, str]]:
    data = folder_of(mac(Launchd(()), folder))
    refused = checked(False, denied_text(("bridge0", "en0")))
    for name, line in (("system install", checked(True)), ("system install refused", refused)):
        host = mac(Started(data, line), folder, is_root=True)
        yield name, service.install(system=True, host=host).replace(str(folder), "")
        service.uninstall(system=True, host=host)


def screens() -> dict[str, str]:
    found = dict(service_screens())
    for name, macos, machine, python in (
        ("too old a Python", "15.1", "arm64", (3, 9, 6)),
        ("macOS 13", "13.6.1", "arm64", (3, 13, 0)),
        ("Intel", "15.1", "x86_64", (3, 13, 0)),
    ):
        found[name] = complaint("Darwin", machine, macos, python)
    found["default bridge"] = on_the_screen(check_thunderbolt([CABLE], [ETHERNET, bridge("169.254.7.1/16")], "en0"))
    found["no IPv4"] = on_the_screen(check_thunderbolt([CABLE], [ETHERNET, NO_IPV4], "en0"))
    found["bridge missing"] = on_the_screen(check_thunderbolt([CABLE], [ETHERNET], "en0"))
    found["ring of three"] = on_the_screen(
        check_thunderbolt([CABLE, SECOND_CABLE], [ETHERNET, bridge("10.254.0.1/24")])
    )
    found["bridge with a lease"] = on_the_screen(
        check_thunderbolt([CABLE], [ETHERNET, bridge("192.168.1.99/24")], "en0")
    )
    found["nothing connected"] = on_the_screen(check_thunderbolt([EMPTY_PORT], [ETHERNET], "en0"))
    denied = of_denied(denied_text(("bridge0", "en0")), [("169.254.10.2", 52410)], [])
    found["denied"] = by_doctor(denied)
    found |= dict(hours.screens())
    home = Path("/Users/me")
    for name, finding in (
        ("protected folder", of_protected_folders({"the model": home / "Documents/qwen"}, home)[0]),
        ("sleep", of_sleep(" sleep                10\n")[0]),
    ):
        found[name] = by_doctor(finding)
    return found


def in_the_document() -> dict[str, str]:
    blocks = re.findall(r"<!-- screen: (.+?) -->\n```\n(.*?)\n```", DOCUMENT.read_text(), re.DOTALL)
    return dict(blocks)


FROM_A_NODE = {"loading", "ready", "answered"}
"""Compared in test_install.py, with what a node of the installed wheel prints."""


def test_every_screen_of_the_first_hour_is_what_is_printed() -> None:
    written = in_the_document()
    assert {name: screen for name, screen in written.items() if name not in FROM_A_NODE} == screens()
    assert written.keys() >= FROM_A_NODE


def test_commands_in_the_document_are_ones_that_there_are() -> None:
    from exod.cli.main import build

    _, commands = build()
    for words in re.findall(r"^exoctl ([a-z]+)(?: ([a-z]+))?", DOCUMENT.read_text(), re.MULTILINE):
        assert words[0] in commands.names
        if words[0] in commands.groups and words[1]:
            assert words[1] in commands.groups[words[0]].names


if __name__ == "__main__":
    text = DOCUMENT.read_text()
    for name, screen in screens().items():
        block = f"<!-- screen: {name} -->\n```\n{screen}\n```"
        old = re.search(rf"<!-- screen: {re.escape(name)} -->\n```\n.*?\n```", text, re.DOTALL)
        text = text.replace(old[0], block) if old else f"{text}\n{block}\n"
    DOCUMENT.write_text(text)
