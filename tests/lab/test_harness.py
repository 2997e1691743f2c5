"""The lab itself: links do what they are told, and nothing is left behind. No daemon runs here."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import avahi, netns
from tests.lab.conftest import skip_or_fail
from tests.lab.emulator import EmulatorError
from tests.lab.fault_kinds import HOST_KINDS, little_memory
from tests.lab.node import wait_for
from tests.lab.topology import Host, Lab

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
ECHO_PORT = 7007


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(2) as lab:
        yield lab


@pytest.fixture(autouse=True)
def _all_links_restored(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").restore()


class Echo:
    """Asks host 2 from host 1 by UDP and measures the way there and back."""

    def __init__(self, lab: Lab, interface: str) -> None:
        self.far = lab.host(2).socket(socket.SOCK_DGRAM)
        self.far.bind((lab.host(2).address(interface), ECHO_PORT))
        self.near = lab.host(1).socket(socket.SOCK_DGRAM)
        self.near.connect(self.far.getsockname())
        self.rtts_ms(1)  # the first datagram waits for the address resolution

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self.near.close()
        self.far.close()

    def rtts_ms(self, count: int, *, timeout_s: float = 0.5, size: int = 64) -> list[float]:
        """Round trips of `count` datagrams, one after the other; those without an answer are left out."""
        self.near.settimeout(timeout_s)
        self.far.settimeout(timeout_s)
        found = []
        for number in range(count):
            sent = time.perf_counter()
            self.near.send(number.to_bytes(4, "big") + bytes(size - 4))
            try:
                data, address = self.far.recvfrom(65536)
                self.far.sendto(data, address)
                while int.from_bytes(self.near.recv(65536)[:4], "big") != number:
                    pass
            except TimeoutError:
                continue
            found.append((time.perf_counter() - sent) * 1e3)
        return found

    def arrive_from_1_to_2(self, count: int, size: int = 64) -> int:
        """How many of `count` datagrams reach host 2."""
        return _arrivals(self.near, self.far, self.far.getsockname(), count, size)

    def arrive_from_2_to_1(self, count: int) -> int:
        return _arrivals(self.far, self.near, self.near.getsockname(), count, 64)


def _arrivals(source: socket.socket, target: socket.socket, address: tuple[str, int], count: int, size: int) -> int:
    for _ in range(count):
        source.sendto(bytes(size), address)
        time.sleep(0.0005)
    target.settimeout(0.3)
    arrived = 0
    while arrived < count:
        try:
            target.recv(65536)
        except TimeoutError:
            break
        arrived += 1
    return arrived


def test_ethernet_is_faster_than_the_cable_and_both_are_far_below_5_ms(lab: Lab) -> None:
    with Echo(lab, "bridge0") as cable, Echo(lab, "en0") as ethernet:
        cable_ms, ethernet_ms = (statistics.median(echo.rtts_ms(200)) for echo in (cable, ethernet))
    assert ethernet_ms < cable_ms < 2.5


def test_the_vpn_takes_22_ms_each_way(lab: Lab) -> None:
    with Echo(lab, "utun4") as echo:
        rtts_ms = echo.rtts_ms(20)
    assert min(rtts_ms) >= 44.0
    assert statistics.median(rtts_ms) < 50.0


@pytest.mark.parametrize("interface", ["bridge0", "en0"])
def test_a_delay_holds_each_way_until_it_is_undone(lab: Lab, interface: str) -> None:
    with Echo(lab, interface) as echo:
        lab.link(interface).set(delay_ms=20)
        slow_ms = echo.rtts_ms(20)
        lab.link(interface).restore()
        fast_ms = echo.rtts_ms(50)
    assert min(slow_ms) >= 40.0
    assert statistics.median(slow_ms) < 45.0
    assert statistics.median(fast_ms) < 2.5


def test_jitter_spreads_the_delay_and_never_reorders(lab: Lab) -> None:
    with Echo(lab, "bridge0") as echo:
        lab.link("bridge0").set(jitter_ms=4, source=1)
        rtts_ms = echo.rtts_ms(100)
        for number in range(200):
            echo.near.send(number.to_bytes(4, "big"))
        order = [int.from_bytes(echo.far.recv(64), "big") for _ in range(200)]
    assert min(rtts_ms) < 1.5
    assert max(rtts_ms) > 3.0
    assert 1.0 < statistics.median(rtts_ms) < 4.0
    assert order == sorted(order)


@pytest.mark.parametrize("interface", ["bridge0", "en0"])
def test_a_cut_link_carries_nothing_and_comes_back(lab: Lab, interface: str) -> None:
    with Echo(lab, interface) as echo:
        lab.link(interface).cut()
        assert echo.rtts_ms(3, timeout_s=0.1) == []
        assert "UP" in lab.host(1).run(["ip", "link", "show", interface]).stdout
        lab.link(interface).restore()
        assert len(echo.rtts_ms(10)) == 10


@pytest.mark.parametrize("interface", ["bridge0", "en0"])
def test_an_unplugged_cable_is_seen_by_the_interface(lab: Lab, interface: str) -> None:
    def state() -> str:
        return lab.host(1).run(["ip", "link", "show", interface]).stdout

    lab.link(interface).unplug()
    try:
        wait_for(lambda: "NO-CARRIER" in state(), 5.0, "carrier lost")
    finally:
        lab.link(interface).plug()
    wait_for(lambda: "NO-CARRIER" not in state(), 5.0, "carrier back")
    with Echo(lab, interface) as echo:
        assert echo.rtts_ms(3)


@pytest.mark.parametrize("interface", ["bridge0", "en0"])
def test_one_direction_can_be_cut_alone(lab: Lab, interface: str) -> None:
    with Echo(lab, interface) as echo:
        lab.link(interface).cut(source=1)
        assert echo.arrive_from_1_to_2(20) == 0
        assert echo.arrive_from_2_to_1(20) == 20


def test_loss_takes_its_share_of_one_direction_only(lab: Lab) -> None:
    with Echo(lab, "bridge0") as echo:
        lab.link("bridge0").set(loss=0.3, source=1)
        there, back = echo.arrive_from_1_to_2(400), echo.arrive_from_2_to_1(100)
    assert 200 < there < 350  # 280 ± 9 expected
    assert back == 100


def test_large_frames_can_be_dropped_alone(lab: Lab) -> None:
    with Echo(lab, "bridge0") as echo:
        lab.link("bridge0").set(drop_over_bytes=1500)
        assert echo.arrive_from_1_to_2(10, size=4000) == 0
        assert echo.arrive_from_1_to_2(10, size=500) == 10


def test_conditions_add_up_and_are_reported_with_what_passed(lab: Lab) -> None:
    link = lab.link("bridge0")
    link.set(delay_ms=3)
    link.set(loss=0.5, target=2)
    directions = link.directions()
    assert directions[1, 2]["conditions"] == {
        "delay_ms": 3, "jitter_ms": 0.0, "loss": 0.5, "cut": False, "drop_over_bytes": 0,
    }  # fmt: skip
    assert directions[2, 1]["conditions"]["loss"] == 0.0
    with pytest.raises(EmulatorError, match="unknown condition colour; there are delay_ms"):
        link.set(colour="red")


def test_a_stream_passes_the_cable_whole_and_only_the_cable(lab: Lab) -> None:
    first, second = lab.hosts
    before = {name: first.counters(name).bytes for name in ("bridge0", "en0", "utun4")}
    data = os.urandom(1 << 20) * 16
    with second.socket() as listener, first.socket() as sender:
        listener.bind((second.address("bridge0"), ECHO_PORT))
        listener.listen()
        sender.connect(listener.getsockname())
        threading.Thread(target=lambda: (sender.sendall(data), sender.close())).start()
        receiver, _ = listener.accept()
        with receiver:
            assert [one.remote for one in first.connections(range(ECHO_PORT, ECHO_PORT + 1))] == [
                second.address("bridge0")
            ]
            began = time.perf_counter()
            received = b"".join(iter(lambda: receiver.recv(1 << 20), b""))
            elapsed_s = time.perf_counter() - began
    assert received == data
    moved = {name: first.counters(name).bytes - count for name, count in before.items()}
    assert moved["bridge0"] >= len(data)
    assert moved["en0"] < 100_000
    assert moved["utun4"] < 100_000
    assert elapsed_s < 10.0  # about 1.6 Gb/s would do; the emulator carries some 20


def test_an_idle_emulator_costs_nothing(lab: Lab) -> None:
    def spent_s() -> float:
        fields = Path(f"/proc/{lab.emulator.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = spent_s()
    time.sleep(1.0)  # the stretch of time that is measured
    assert spent_s() - before <= 0.02


def test_interfaces_can_be_renamed_readdressed_downed_and_made_again(lab: Lab) -> None:
    host = lab.host(1)
    host.rename("bridge0", "bridge9")
    assert "bridge9" in host.interfaces()
    host.rename("bridge9", "bridge0")
    host.add_address("bridge0", "192.168.9.1/24")
    host.remove_address("bridge0", "192.168.9.1/24")
    host.down("en0")
    host.up("en0")
    for name in ("bridge0", "en0"):
        lab.link(name).remove()
        assert name not in host.interfaces()
        lab.link(name).make()
        with Echo(lab, name) as echo:
            assert echo.rtts_ms(3)


def test_signals_reach_a_command_in_a_host_by_its_pid(lab: Lab) -> None:
    process = lab.host(1).popen(["sleep", "60"])
    wait_for(lambda: process.pid in lab.host(1).processes(), 5.0, "the command runs in the host")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(5.0) == -signal.SIGTERM


@pytest.mark.skipif("memory kill" not in HOST_KINDS, reason="no memory group can be made here")
def test_a_process_without_memory_is_killed_though_it_asks_for_nothing() -> None:
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"], stdout=-1
    )
    try:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        with little_memory(f"exod-test-{os.getpid()}", [sleeper.pid]):
            assert sleeper.wait(10.0) == -signal.SIGKILL
    finally:
        sleeper.kill()
        sleeper.wait()


def test_three_hosts_have_a_cable_for_each_pair_and_share_the_switches() -> None:
    with Lab(3) as lab:
        assert [lab.host(number).addresses for number in (1, 2, 3)] == [
            {"bridge0": "192.168.4.21/24", "bridge1": "192.168.5.21/24",
             "en0": "10.77.0.1/24", "utun4": "100.64.0.1/10"},
            {"bridge0": "192.168.4.22/24", "bridge1": "192.168.6.22/24",
             "en0": "10.77.0.2/24", "utun4": "100.64.0.2/10"},
            {"bridge0": "192.168.5.23/24", "bridge1": "192.168.6.23/24",
             "en0": "10.77.0.3/24", "utun4": "100.64.0.3/10"},
        ]  # fmt: skip
        lab.cable(2, 3).cut()
        assert not _pings(lab.host(2), "192.168.6.23")
        assert _pings(lab.host(1), "192.168.5.23")
        for address in ("10.77.0.1", "10.77.0.3", "100.64.0.1", "100.64.0.3"):
            assert _pings(lab.host(2), address)
        lab.link("en0").cut(source=2)
        assert not _pings(lab.host(2), "10.77.0.1")
        assert _pings(lab.host(1), "10.77.0.3")


def test_three_hosts_can_share_one_bridge_or_go_without_a_cable() -> None:
    with Lab(3, shared_bridge=True) as shared, Lab(3, cables=[(1, 2)]) as one_cable:
        assert _pings(shared.host(1), "192.168.4.23")
        assert shared.cable(1, 3) is shared.link("bridge0")
        assert "bridge0" not in one_cable.host(3).interfaces()
        assert _pings(one_cable.host(2), "192.168.4.21")
        # Two labs at once do not hear each other.
        one_cable.link("en0").cut()
        assert _pings(shared.host(1), "10.77.0.2")


def _pings(host: Host, address: str) -> bool:
    return host.run(["ping", "-c", "1", "-W", "0.4", address], check=False).returncode == 0


def test_mdns_crosses_the_lab_and_avahi_sees_it(lab: Lab) -> None:
    if missing := avahi.missing_tools():
        skip_or_fail(f"install avahi-daemon, avahi-utils and dbus: no {', '.join(missing)}")
    with Avahi(lab, 1) as announcing, Avahi(lab, 2) as browsing:
        announcing.publish("a service of the lab", "_exodlab._tcp", 52410)
        found = wait_for(lambda: browsing.browse("_exodlab._tcp"), 30.0, "the service found", every_s=0.3)
    assert {(entry["host"], entry["port"]) for entry in found} == {("studio1.local", "52410")}
    assert {entry["interface"] for entry in found} >= {"bridge0", "en0"}


def Avahi(lab: Lab, number: int) -> avahi.Avahi:  # noqa: N802  reads as the class it makes
    return avahi.Avahi(lab.host(number), lab.folder)


def test_leaving_the_lab_ends_and_removes_everything() -> None:
    with Lab(2) as lab:
        child = lab.host(1).popen(["sleep", "60"])
        emulator, folder = lab.emulator.pid, lab.folder
        assert netns.namespaces_of(lab.name)
    assert child.wait(5.0) == -signal.SIGKILL
    assert netns.namespaces_of(lab.name) == []
    assert not Path(f"/proc/{emulator}").exists()
    assert not folder.exists()


SWEPT_WITHIN_S = 30.0  # up to 5 s for each namespace whose processes are slow to die, and a busy machine
CRASHING = """
import sys, time
from tests.lab.topology import Lab
with Lab(2) as lab:
    process = lab.host(1).popen(["sleep", "600"])
    print(lab.name, lab.emulator.pid, process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("emulator_survives_to_sweep", [True, False])
def test_a_killed_lab_is_swept(emulator_survives_to_sweep: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", CRASHING], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        name, emulator, command = owner.stdout.readline().split()
        if not emulator_survives_to_sweep:
            os.kill(int(emulator), signal.SIGKILL)
        owner.kill()
        owner.wait()
        if not emulator_survives_to_sweep:
            assert netns.namespaces_of(name)
            assert name in netns.sweep_dead_labs()

        def nothing_left() -> bool:
            processes = [Path(f"/proc/{pid}") for pid in (emulator, command)]
            return not netns.namespaces_of(name) and not any(_alive(process) for process in processes)

        wait_for(nothing_left, SWEPT_WITHIN_S, f"nothing is left of {name}")


def _alive(process: Path) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
