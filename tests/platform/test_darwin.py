"""What macOS's platform does with answers, refusals and stamps. Runs anywhere: the commands are answers."""

from __future__ import annotations

import struct

import pytest

from exod.model import Kind
from exod.platform.commands import CommandOutputs
from exod.platform.darwin import Darwin
from tests.platform.test_darwin_text import IFCONFIG, SERVICE_ORDER, STUDIO_PORTS

PORTS = ("/usr/sbin/networksetup", "-listallhardwareports")
SERVICES = ("/usr/sbin/networksetup", "-listnetworkserviceorder")
INTERFACES = ("/sbin/ifconfig", "-v")
LIMIT = ("/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb")


class Tools:
    """Answers command lines; what has no answer fails, as a missing tool does."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, ...], str] = {}
        self.now = 0.0
        self.asked: list[tuple[str, ...]] = []

    async def __call__(self, argv: tuple[str, ...]) -> str | None:
        self.asked.append(argv)
        return self.answers.get(argv)

    def platform(self) -> Darwin:
        return Darwin(CommandOutputs(self, lambda: self.now), timebase=(125, 3))


@pytest.mark.anyio
async def test_a_refresh_tells_whether_the_answer_changed() -> None:
    tools = Tools()
    darwin = tools.platform()
    assert not await darwin.refresh()
    assert darwin.classify("en5", []).kind is Kind.ETHERNET

    tools.now += 60
    tools.answers = {PORTS: STUDIO_PORTS, SERVICES: SERVICE_ORDER, INTERFACES: IFCONFIG}
    assert await darwin.refresh()
    assert darwin.classify("en5", []).kind is Kind.THUNDERBOLT
    tools.now += 60
    assert not await darwin.refresh()


@pytest.mark.anyio
async def test_a_tool_that_fails_once_takes_nothing_back() -> None:
    tools = Tools()
    darwin = tools.platform()
    tools.answers = {PORTS: STUDIO_PORTS}
    await darwin.refresh()
    tools.now += 60
    tools.answers = {}
    assert not await darwin.refresh()
    assert darwin.classify("en5", []).kind is Kind.THUNDERBOLT


@pytest.mark.anyio
async def test_askers_of_one_moment_share_one_run() -> None:
    tools = Tools()
    darwin = tools.platform()
    await darwin.refresh()
    await darwin.refresh()
    assert tools.asked.count(PORTS) == 1


@pytest.mark.anyio
async def test_a_wired_limit_that_a_person_set_is_the_memory_for_models() -> None:
    tools = Tools()
    darwin = tools.platform()
    of_the_system = darwin.memory_mib()
    assert of_the_system > 0
    tools.answers = {LIMIT: "0\n"}
    await darwin.refresh()
    assert darwin.memory_mib() == of_the_system
    tools.now += 60
    tools.answers = {LIMIT: "458752\n"}
    await darwin.refresh()
    assert darwin.memory_mib() == 458752


def test_what_mlx_recommends_is_the_memory_for_models() -> None:
    darwin = Tools().platform()
    darwin.learn_recommended(11_453_251_584)
    assert darwin.memory_mib() == 10922
    darwin.learn_recommended(0)
    assert darwin.memory_mib() > 0


@pytest.mark.anyio
async def test_what_the_tools_do_not_say_is_unknown() -> None:
    darwin = Tools().platform()
    assert await darwin.primary_interface() is None
    assert await darwin.thunderbolt() == ()


def stamp(ticks: int) -> list[tuple[int, int, bytes]]:
    return [(0xFFFF, 0x04, struct.pack("=Q", ticks))]


def test_a_stamp_in_mach_ticks_becomes_monotonic_seconds() -> None:
    darwin = Tools().platform()
    ticks = 24_000_000 * 100  # 24 MHz, Apple silicon: 100 s
    assert darwin.receive_stamp(stamp(ticks), now=100.002) == pytest.approx(100.0)
    assert darwin.receive_stamp(stamp(ticks), now=99.9995) == 99.9995  # never later than the read


@pytest.mark.parametrize("ticks", [0, 24_000_000 * 200, 24_000_000 * 50])
def test_a_stamp_that_cannot_be_is_refused(ticks: int) -> None:
    assert Tools().platform().receive_stamp(stamp(ticks), now=100.0) is None


def test_other_ancillary_data_is_no_stamp() -> None:
    darwin = Tools().platform()
    assert darwin.receive_stamp([], 100.0) is None
    assert darwin.receive_stamp([(0xFFFF, 0x02, b"\0" * 16), (0xFFFF, 0x04, b"\0" * 4)], 100.0) is None


def test_errno_65_is_what_local_network_privacy_looks_like() -> None:
    darwin = Tools().platform()
    assert darwin.local_network_privacy_suspected(65)
    assert not darwin.local_network_privacy_suspected(61)


def test_workers_ask_metal_not_to_time_out() -> None:
    assert Tools().platform().worker_environment() == {
        "MTL_DISABLE_TIMEOUT": "1",
        "MTL_COMMAND_BUFFER_TIMEOUT": "0",
    }


def test_crash_reports_lie_in_the_users_and_the_systems_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/Users/me")
    assert [str(folder) for folder in Darwin().crash_folders()] == [
        "/Users/me/Library/Logs/DiagnosticReports",
        "/Users/me/Library/Logs/DiagnosticReports/Retired",
        "/Library/Logs/DiagnosticReports",
        "/Library/Logs/DiagnosticReports/Retired",
    ]
