"""The lab's hosts and links.

Decides names and addresses, and which link is carried by what. Each host N is a namespace with

    bridge0, bridge1   192.168.4.2N, …   Thunderbolt: emulated, undelayed; one cable for each pair of hosts
    en0                10.77.0.N         Ethernet: the kernel's own switch, faster than the emulated cable
    utun4              100.64.0.N        the VPN: emulated, 22 ms each way

With two hosts the cable is `bridge0` on both, 192.168.4.21 and .22. With three, the pairs 1-2, 1-3 and 2-3
have the networks 192.168.4, .5 and .6, and each host calls its first cable bridge0 and its second bridge1;
`shared_bridge=True` puts all hosts on one bridge0 instead. While a fault lies on `en0` the emulator carries
its frames; without one the kernel does. Never starts a daemon (`node`) and knows nothing about one. Called
by `node`, by the tests and by `python -m tests.lab`.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.lab import netns
from tests.lab.emulator import Emulator

VPN_DELAY_MS = 22.0
CABLE_MTU = 9000
ETHERNET_MTU = 1500
VPN_MTU = 1280
RUN_WITHIN_S = 60.0
# A socket that is connected and not closing, in /proc/net/tcp (include/net/tcp_states.h).
TCP_ESTABLISHED = "01"
TCP_TIME_WAIT = "06"


@dataclass(frozen=True)
class Counters:
    """What an interface has moved since it was made."""

    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int

    @property
    def bytes(self) -> int:
        return self.rx_bytes + self.tx_bytes

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(
            self.rx_bytes - earlier.rx_bytes,
            self.tx_bytes - earlier.tx_bytes,
            self.rx_packets - earlier.rx_packets,
            self.tx_packets - earlier.tx_packets,
        )


@dataclass(frozen=True)
class Connection:
    """An established TCP connection, IPv4, as the host sees it."""

    local: str
    local_port: int
    remote: str
    remote_port: int


class Host:
    """One computer of the lab: run things in it, look at it, change its interfaces."""

    def __init__(self, number: int, name: str, namespace: str) -> None:
        self.number = number
        self.name = name
        self.namespace = namespace
        self.addresses: dict[str, str] = {}  # interface -> address/prefix, as the lab set it up

    def argv(self, argv: Iterable[str | Path]) -> list[str]:
        """`argv` so that it runs here. The command replaces ip(8), so a signal to the pid reaches it."""
        return ["ip", "netns", "exec", self.namespace, *map(str, argv)]

    def run(
        self, argv: Iterable[str | Path], *, check: bool = True, timeout_s: float = RUN_WITHIN_S, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command here to its end and returns it, its output captured as text."""
        done = subprocess.run(
            self.argv(argv), capture_output=True, text=True, check=False, timeout=timeout_s, **more
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{self.name}: {' '.join(map(str, argv))}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def popen(self, argv: Iterable[str | Path], **more: Any) -> subprocess.Popen[Any]:
        """Starts a command here, in a session of its own; the lab's end kills what is left of it."""
        return subprocess.Popen(self.argv(argv), start_new_session=True, **more)

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Puts the calling thread here for the body of a `with`."""
        return netns.entered(self.namespace)

    def socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """An IPv4 socket of this host, to use from anywhere."""
        with self.entered():
            return socket.socket(socket.AF_INET, kind)

    def address(self, interface: str) -> str:
        """The address the lab gave to `interface`."""
        return self.addresses[interface].partition("/")[0]

    def counters(self, interface: str) -> Counters:
        return self.all_counters()[interface]

    def all_counters(self) -> dict[str, Counters]:
        with self.entered():
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
        found = {}
        for line in lines:
            interface, _, figures = line.partition(":")
            rx_bytes, rx_packets, *_, tx_bytes, tx_packets = [int(text) for text in figures.split()[:10]]
            found[interface.strip()] = Counters(rx_bytes, tx_bytes, rx_packets, tx_packets)
        return found

    def connections(self, ports: range) -> list[Connection]:
        """Established connections with either end's port in `ports`."""
        with self.entered():
            lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
        rows = [line.split() for line in lines]
        found = [Connection(*_endpoint(row[1]), *_endpoint(row[2])) for row in rows if row[3] == TCP_ESTABLISHED]
        return [one for one in found if one.local_port in ports or one.remote_port in ports]

    def leftovers(self, ports: range) -> list[str]:
        """TCP sockets in any state with either end's port in `ports`: `local remote state`, as the kernel writes
        them. All but those that only remember an orderly end.
        """
        with self.entered():
            lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
        rows = [line.split() for line in lines]
        return [
            " ".join(row[1:4])
            for row in rows
            if row[3] != TCP_TIME_WAIT and {_endpoint(row[1])[1], _endpoint(row[2])[1]} & set(ports)
        ]

    def processes(self) -> list[int]:
        return netns.processes_in(self.namespace)

    def ip(self, *commands: str) -> None:
        """Runs ip(8) commands here, one a string, in order."""
        netns.ip(namespace=self.namespace, commands=list(commands))

    def interfaces(self) -> list[str]:
        with self.entered():
            return [name for _, name in socket.if_nameindex()]

    def up(self, interface: str) -> None:
        self.ip(f"link set {interface} up")

    def down(self, interface: str) -> None:
        self.ip(f"link set {interface} down")

    def rename(self, interface: str, to: str) -> None:
        """Renames an interface, which takes it down for a moment. It keeps its addresses."""
        self.ip(f"link set {interface} down", f"link set {interface} name {to}", f"link set {to} up")

    def add_address(self, interface: str, address: str) -> None:
        """Adds `address` with its prefix length, as in 192.168.9.1/24."""
        self.ip(f"addr add {address} dev {interface}")

    def remove_address(self, interface: str, address: str) -> None:
        self.ip(f"addr del {address} dev {interface}")


def _endpoint(text: str) -> tuple[str, int]:
    """Reads `1604A8C0:CCDE` of /proc/net/tcp: the address in host order, then the port."""
    address, port = text.split(":")
    return socket.inet_ntoa(int(address, 16).to_bytes(4, "little")), int(port, 16)


@dataclass(frozen=True)
class Attachment:
    """How one host is attached to a link."""

    host: Host
    interface: str
    address: str  # with the prefix length
    mac: str


class Link:
    """A cable, or a switch with more than two hosts. What is set lasts until `restore`."""

    def __init__(self, name: str, emulator: Emulator, ends: list[Attachment], mtu: int, **usual: float) -> None:
        self.name = name
        self.ends = ends
        self._emulator = emulator
        self._mtu = mtu
        self._usual = usual  # the conditions of the undisturbed link
        self._ports = {str(end.host.number): end for end in ends}

    def make(self) -> None:
        """Creates the link's interfaces, with their addresses, up."""
        self._emulator.command("add", segment=self.name, ports=self._emulated_ports())
        for end in self.ends:
            self._configure(end)
        self._set(dict(self._usual))

    def remove(self) -> None:
        """Takes the interfaces away, as unplugging an adapter does; `make` brings them again."""
        self._emulator.command("remove", segment=self.name)

    def _configure(self, end: Attachment) -> None:
        end.host.ip(
            f"link set {end.interface} address {end.mac} mtu {self._mtu}",
            f"addr add {end.address} dev {end.interface}",
            f"link set {end.interface} up multicast on",
        )
        end.host.addresses[end.interface] = end.address

    def _emulated_ports(self) -> dict[str, dict[str, str]]:
        return {
            port: {"netns": end.host.namespace, "device": end.interface, "via": "tap"}
            for port, end in self._ports.items()
        }

    def set(self, *, source: int | None = None, target: int | None = None, **conditions: Any) -> None:
        """Changes conditions: delay_ms, jitter_ms, loss (0..1), cut, drop_over_bytes; see `Conditions`.

        They hold each way, or only for frames from host `source`, or to host `target`, or both. What is not
        named stays as it was.
        """
        self._set(conditions, source, target)

    def _set(self, changes: dict[str, Any], source: int | None = None, target: int | None = None) -> None:
        self._emulator.command(
            "set",
            segment=self.name,
            changes=changes,
            source=None if source is None else str(source),
            target=None if target is None else str(target),
        )

    def cut(self, *, source: int | None = None, target: int | None = None) -> None:
        """Drops every frame, silently: the interfaces stay up, as with a switch between."""
        self.set(source=source, target=target, cut=True)

    def restore(self) -> None:
        """Makes the link as it was at first."""
        self._set({})
        if self._usual:
            self._set(dict(self._usual))

    def unplug(self) -> None:
        """Drops every frame and the carrier: both interfaces see that the cable is gone."""
        self.cut()
        self._carrier(False)

    def plug(self) -> None:
        self._carrier(True)
        self.restore()

    def _carrier(self, up: bool) -> None:
        self._emulator.command("carrier", segment=self.name, up=up)

    def directions(self) -> dict[tuple[int, int], dict[str, Any]]:
        """For each (from host, to host): conditions, frames carried, dropped and in flight."""
        found: dict[tuple[int, int], dict[str, Any]] = {}
        for direction, figures in self._emulator.command("stats")["directions"].items():
            segment, _, ends = direction.rpartition("/")
            if segment == self.name:
                source, target = ends.split(">")
                found[int(source), int(target)] = figures
        return found


class KernelLink(Link):
    """A switch of the kernel's own in a namespace between the hosts, while no fault lies on it.

    For a fault its ports are taken out of the switch and handed to the emulator. Where the kernel has no
    bridge the emulator carries the frames all the time.
    """

    def __init__(self, *arguments: Any, hub: str, **usual: float) -> None:
        super().__init__(*arguments, **usual)
        self._hub = hub
        self._has_switch = False
        self._emulated = False

    def make(self) -> None:
        netns.ip("netns", "add", self._hub)
        with netns.entered(self._hub):
            for scope in ("all", "default"):  # the hub carries frames and says nothing itself
                with contextlib.suppress(FileNotFoundError):
                    Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1")
        with contextlib.suppress(RuntimeError):
            netns.ip(
                namespace=self._hub,
                commands=["link add switch type bridge stp_state 0 mcast_snooping 0", "link set switch up"],
            )
            self._has_switch = True
        for port, end in self._ports.items():
            peer = f"{end.interface} netns {end.host.namespace}"
            netns.ip(
                namespace=self._hub,
                commands=[f"link add port{port} type veth peer name {peer}", f"link set port{port} up"],
            )
            self._configure(end)
        if self._has_switch:
            self._switch(True)
        else:
            self._hand_over()

    def remove(self) -> None:
        if self._emulated:
            super().remove()
            self._emulated = False
        # The kernel takes its time to end a namespace; a device goes at once, and its peer with it.
        netns.ip(namespace=self._hub, commands=[f"link delete port{port}" for port in self._ports])
        netns.ip("netns", "delete", self._hub)

    def _emulated_ports(self) -> dict[str, dict[str, str]]:
        return {port: {"netns": self._hub, "device": f"port{port}", "via": "packet"} for port in self._ports}

    def _switch(self, joined: bool) -> None:
        state = "master switch" if joined else "nomaster"
        netns.ip(namespace=self._hub, commands=[f"link set port{port} {state}" for port in self._ports])

    def _hand_over(self) -> None:
        self._emulator.command("add", segment=self.name, ports=self._emulated_ports())
        self._emulated = True

    def _set(self, changes: dict[str, Any], source: int | None = None, target: int | None = None) -> None:
        if not self._emulated:
            if not changes:
                return
            self._switch(False)
            self._hand_over()
        super()._set(changes, source, target)

    def restore(self) -> None:
        super().restore()
        if self._emulated and self._has_switch:
            self._emulator.command("remove", segment=self.name)
            self._emulated = False
            self._switch(True)

    def _carrier(self, up: bool) -> None:
        state = "up" if up else "down"
        netns.ip(namespace=self._hub, commands=[f"link set port{port} {state}" for port in self._ports])


class Lab:
    """Hosts 1..N and their links, from entering the `with` to leaving it.

    `cables` names the pairs that have a Thunderbolt cable; all pairs where it is not given.
    """

    def __init__(
        self,
        hosts: int = 2,
        *,
        cables: Iterable[tuple[int, int]] | None = None,
        shared_bridge: bool = False,
        vpn_delay_ms: float = VPN_DELAY_MS,
    ) -> None:
        self.name = netns.new_lab_name()
        self.folder = netns.folder_of(self.name)
        self.hosts = [
            Host(number, f"studio{number}", f"{self.name}-studio{number}") for number in range(1, hosts + 1)
        ]
        pairs = list(itertools.combinations(range(1, hosts + 1), 2))
        self._pairs = pairs if cables is None else [tuple(sorted(pair)) for pair in cables]
        self._shared_bridge = shared_bridge
        self._vpn_delay_ms = vpn_delay_ms
        self._links: dict[str, Link] = {}
        self._cables: dict[tuple[int, int], Link] = {}
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        netns.sweep_dead_labs()
        self._closing.callback(netns.remove_lab, self.name)
        try:
            self.folder.mkdir(mode=0o700)
            for host in self.hosts:
                netns.ip("netns", "add", host.namespace)
                host.up("lo")
            self.emulator = Emulator(self.name, self.folder)
            self._closing.callback(self.emulator.close)
            self._lay_links()
        except BaseException:
            self._closing.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def host(self, number: int) -> Host:
        return self.hosts[number - 1]

    def link(self, name: str) -> Link:
        """A link by name: en0, utun4, and the cables: bridge0 where there is one, else cable12, cable13, …"""
        return self._links[name]

    def cable(self, first: int, second: int) -> Link:
        """The Thunderbolt cable between two hosts."""
        return self._cables[min(first, second), max(first, second)]

    @property
    def links(self) -> dict[str, Link]:
        return dict(self._links)

    def restore(self) -> None:
        """Ends all faults of all links."""
        for link in self._links.values():
            link.restore()

    def _lay_links(self) -> None:
        for link in self._cable_links():
            self._add(link)
        numbers = [host.number for host in self.hosts]
        ethernet = self._ends("en0", numbers, 0x0E, "10.77.0.{}/24")
        self._add(KernelLink("en0", self.emulator, ethernet, ETHERNET_MTU, hub=f"{self.name}-hub"))
        vpn = self._ends("utun4", numbers, 0x64, "100.64.0.{}/10")
        self._add(Link("utun4", self.emulator, vpn, VPN_MTU, delay_ms=self._vpn_delay_ms))

    def _add(self, link: Link) -> None:
        link.make()
        self._links[link.name] = link

    def _cable_links(self) -> Iterator[Link]:
        if self._shared_bridge:
            ends = self._ends("bridge0", [host.number for host in self.hosts], 0xB0, "192.168.4.2{}/24")
            link = Link("bridge0", self.emulator, ends, CABLE_MTU)
            self._cables = dict.fromkeys(itertools.combinations(range(1, len(self.hosts) + 1), 2), link)
            yield link
            return
        plugged = dict.fromkeys(range(1, len(self.hosts) + 1), 0)
        for count, (first, second) in enumerate(self._pairs):
            ends = []
            for number in (first, second):
                interface = f"bridge{plugged[number]}"
                plugged[number] += 1
                ends += self._ends(interface, [number], 0xB0 + count, f"192.168.{4 + count}.2{{}}/24")
            name = "bridge0" if len(self._pairs) == 1 else f"cable{first}{second}"
            link = self._cables[first, second] = Link(name, self.emulator, ends, CABLE_MTU)
            yield link

    def _ends(self, interface: str, numbers: list[int], network: int, address: str) -> list[Attachment]:
        return [
            Attachment(
                self.host(number), interface, address.format(number), f"02:ec:0d:00:{network:02x}:{number:02x}"
            )
            for number in numbers
        ]
