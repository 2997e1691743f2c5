"""Macs in a box: what macOS's tools print on machines of several kinds, made from a short description of each.

No Mac was at hand: every output is constructed from Apple's documentation and from outputs that people have shown
in public. Labels, keys and indents are macOS's; serial numbers, names and addresses are made up. `outputs` answers
command lines, and `executables` writes programs that print the same.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exod.platform.raw_outputs import DARWIN

SYSCTL = next(place for place, argv in enumerate(DARWIN) if argv[1:2] == ("hw.model",))
LOG_SHOW = next(place for place, argv in enumerate(DARWIN) if argv[1:2] == ("show",))
"""Whose arguments are long stand in the report's own list."""


FIREWALL_OFF = "Firewall is disabled. (State = 0) \n"


@dataclass(frozen=True)
class Receptacle:
    """One Thunderbolt port: its number, its own interface, and what hangs on it."""

    number: str
    device: str
    peer: str = ""
    """The name of a Mac at the other end."""
    dock: str = ""
    """The name of a dock or disk, which may stand between."""
    speed: str = "Up to 40 Gb/s"

    def bus(self, machine: str) -> dict[str, Any]:
        connected = bool(self.peer or self.dock)
        entry: dict[str, Any] = {
            "_name": f"thunderboltusb4_bus_{int(self.number) - 1}",
            "device_name_key": machine,
            "domain_uuid_key": f"0000AAAA-0000-0000-0000-00000000000{self.number}",
            "switch_uid_key": f"0x05AC000000000{self.number}",
            "vendor_name_key": "Apple Inc.",
            "receptacle_1_tag": {
                "current_speed_key": self.speed.removeprefix("Up to ") if connected else self.speed,
                "link_status_key": "0x2" if connected else "0x100",
                "receptacle_id_key": self.number,
                "receptacle_status_key": "receptacle_connected" if connected else "receptacle_no_devices_connected",
            },
        }
        peer = {"_name": self.peer, "device_name_key": self.peer, "domain_uuid_key": f"BBBB-{self.peer}"}
        dock = {"_name": self.dock, "device_name_key": self.dock, "switch_uid_key": "0x1", "mode_key": "usb_four"}
        if self.dock:
            entry["_items"] = [{**dock, "_items": [peer]} if self.peer else dock]
        elif self.peer:
            entry["_items"] = [peer]
        return entry


@dataclass(frozen=True)
class Mac:
    """One machine. `addresses` is interface -> address/prefix; what has none is down."""

    name: str
    chip: str
    macos: str
    memory_gib: int
    receptacles: tuple[Receptacle, ...]
    addresses: dict[str, str]
    ethernet: str = "en0"
    """Empty: it has none."""
    wifi: str = "en1"
    bridge: bool = True
    vpn: str = ""
    primary: str = "en0"
    sleep_minutes: int = 0
    disabled: tuple[str, ...] = ()
    extra: dict[str, str] = field(default_factory=dict)
    """Other interfaces: name -> the rest of their block in ifconfig."""

    # --- the tools ------------------------------------------------------------------------------------------

    def hardware_ports(self) -> str:
        blocks = [(f"Thunderbolt {one.number}", one.device) for one in self.receptacles]
        blocks += [("Ethernet", self.ethernet)] if self.ethernet else []
        blocks += [("Wi-Fi", self.wifi)] if self.wifi else []
        blocks += [("Thunderbolt Bridge", "bridge0")] if self.bridge and self.receptacles else []
        lines = [
            f"\nHardware Port: {port}\nDevice: {device}\nEthernet Address: 02:00:5e:00:00:{place:02x}"
            for place, (port, device) in enumerate(blocks)
        ]
        return "\n".join(lines) + "\n\nVLAN Configurations\n===================\n"

    def service_order(self) -> str:
        services = [("Ethernet", self.ethernet), ("Thunderbolt Bridge", "bridge0"), ("Wi-Fi", self.wifi)]
        lines = ["An asterisk (*) denotes that a network service is disabled."]
        for place, (service, device) in enumerate((one for one in services if one[1]), start=1):
            mark = "*" if device in self.disabled else str(place)
            lines.append(f"({mark}) {service}\n(Hardware Port: {service}, Device: {device})\n")
        if self.vpn:
            lines.append("(9) Tailscale\n(Hardware Port: io.tailscale.ipn.macos, Device: )\n")
        return "\n".join(lines)

    def ifconfig(self) -> str:
        blocks = [
            "lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384 index 1\n\tinet 127.0.0.1 netmask 0xff000000"
        ]
        for one in self.receptacles:
            active = "active" if one.peer else "inactive"
            blocks.append(
                f"{one.device}: {_UP} mtu 1500 index 8\n\tmedia: autoselect <full-duplex>\n\tstatus: {active}"
            )
        if self.bridge and self.receptacles:
            members = "".join(f"\n\tmember: {one.device} flags=3<LEARNING,DISCOVER>" for one in self.receptacles)
            active = "active" if any(one.peer for one in self.receptacles) else "inactive"
            inner = f"\n\tConfiguration:{members}{self._inet('bridge0')}\n\tstatus: {active}"
            blocks.append(f"bridge0: {_UP} mtu 1500 index 14{inner}")
        for name, kind in ((self.ethernet, "Ethernet"), (self.wifi, "Wi-Fi")):
            if name:
                blocks.append(
                    f"{name}: {_UP} mtu 1500 index 11{self._inet(name)}\n\tstatus: active\n\ttype: {kind}"
                )
        if self.vpn:
            agent = '\tagent domain:NetworkExtension type:VPN flags:0xf desc:"VPN: Tailscale"'
            flags = "flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1280 index 20"
            blocks.append(f"{self.vpn}: {flags}{self._inet(self.vpn)}\n{agent}")
        blocks += [f"{name}: {rest}" for name, rest in self.extra.items()]
        return "\n".join(blocks) + "\n"

    def _inet(self, name: str) -> str:
        address = self.addresses.get(name)
        return f"\n\tinet {address.partition('/')[0]} netmask 0xffff0000" if address else ""

    def thunderbolt(self) -> str:
        return json.dumps({"SPThunderboltDataType": [one.bus(self.name) for one in self.receptacles]}, indent=2)

    def nwi(self) -> str:
        lines = ["Network information", "", "IPv4 network interface information"]
        if self.primary:
            address = self.addresses[self.primary].partition("/")[0]
            lines += [f"     {self.primary} : flags      : 0x5 (IPv4,DNS)", f"           address    : {address}"]
        else:
            lines.append("   No IPv4 states found")
        return "\n".join([*lines, "", "IPv6 network interface information", ""])

    def pmset(self) -> str:
        settings = f" standby              0\n sleep                {self.sleep_minutes}\n womp                 1\n"
        return f"System-wide power settings:\nCurrently in use:\n{settings}"

    def sysctl(self) -> str:
        size = self.memory_gib << 30
        return (
            f"hw.model: Mac\nhw.memsize: {size}\nhw.pagesize: 16384\nmachdep.cpu.brand_string: Apple {self.chip}\n"
        )

    def vm_stat(self) -> str:
        pages = (self.memory_gib << 30) // 16384
        return (
            "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
            f"Pages free: {pages // 4:>38}.\nPages wired down: {pages // 8:>32}.\n"
        )

    def route_get(self) -> str:
        """Of the peer at the other end of the cable: the primary interface, whatever the cable can do."""
        way = f"  interface: {self.primary or 'en0'}\n      flags: <UP,DONE>\n"
        return f"   route to: 169.254.10.2\ndestination: 169.254.0.0\n{way}"

    def launchctl_print(self) -> str:
        return "gui/501/com.exod.agent = {\n\tactive count = 1\n\tstate = running\n\tpid = 712\n}\n"

    def log_show(self) -> str:
        """What the system says of a program that it keeps from the network. Made up: nobody has shown one."""
        return (
            "Timestamp               Ty Process[PID:TID]\n"
            "2026-01-31 12:00:00.000 Df nehelper[123:4f] exod is denied access to the local network\n"
        )

    # --- as programs ----------------------------------------------------------------------------------------

    @property
    def outputs(self) -> dict[tuple[str, ...], str]:
        """Command line -> what it prints."""
        return {
            ("/usr/sbin/networksetup", "-listallhardwareports"): self.hardware_ports(),
            ("/usr/sbin/networksetup", "-listnetworkserviceorder"): self.service_order(),
            ("/sbin/ifconfig", "-v"): self.ifconfig(),
            ("/usr/sbin/system_profiler", "SPThunderboltDataType", "-json"): self.thunderbolt(),
            ("/usr/sbin/scutil", "--nwi"): self.nwi(),
            ("/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"): "0\n",
            ("/usr/bin/pmset", "-g"): self.pmset(),
            ("/usr/bin/vm_stat",): self.vm_stat(),
            ("/usr/libexec/ApplicationFirewall/socketfilterfw", "--getglobalstate"): FIREWALL_OFF,
            ("/usr/sbin/netstat", "-rn", "-f", "inet"): f"Routing tables\n\nInternet:\ndefault {self.primary}\n",
            ("/usr/sbin/arp", "-an"): "? (169.254.10.2) at 2:0:5e:0:0:2 on bridge0 ifscope [bridge]\n",
            DARWIN[SYSCTL]: self.sysctl(),
            (
                "/usr/bin/defaults",
                "read",
                "/var/root/Library/Preferences/com.apple.network.local-network",
            ): "{\n}\n",
            DARWIN[LOG_SHOW]: self.log_show(),
            ("/sbin/route", "-n", "get", "169.254.10.2"): self.route_get(),
            ("/bin/launchctl", "print", "gui/501/com.exod.agent"): self.launchctl_print(),
            (
                "/usr/bin/sw_vers",
            ): f"ProductName:\t\tmacOS\nProductVersion:\t\t{self.macos}\nBuildVersion:\t\t25A1\n",
        }

    def executables(self, folder: Path) -> None:
        """One program for each tool, which knows the command lines of `outputs` and fails for others."""
        tools: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for (tool, *arguments), text in self.outputs.items():
            tools.setdefault(Path(tool).name, []).append((tuple(arguments), text))
        for tool, answers in tools.items():
            cases = "".join(
                f"{shlex.quote(' '.join(arguments))}) cat {_written(folder, tool, place, text)} ;;\n"
                for place, (arguments, text) in enumerate(answers)
            )
            program = folder / tool
            program.write_text(
                f'#!/bin/sh\ncase "$*" in\n{cases}*) echo "$0: illegal option" >&2; exit 64 ;;\nesac\n'
            )
            program.chmod(0o755)


def _written(folder: Path, tool: str, place: int, text: str) -> str:
    path = folder / f"{tool}.{place}.txt"
    path.write_text(text)
    return shlex.quote(str(path))


_UP = "flags=8963<UP,BROADCAST,SMART,RUNNING,PROMISC,SIMPLEX,MULTICAST>"

LAN = {"en0": "192.168.1.20/24"}
SELF_ASSIGNED = {"bridge0": "169.254.10.1/16"}


def _ports(*peers: str, speed: str = "Up to 40 Gb/s", first: int = 2) -> tuple[Receptacle, ...]:
    return tuple(
        Receptacle(str(place + 1), f"en{first + place}", peer, speed=speed) for place, peer in enumerate(peers)
    )


M1_WIFI_ONLY = Mac(
    "MacBook Air", "M1", "14.7", 8, _ports("", "", first=1), {"en0": "192.168.1.30/24"},
    ethernet="", wifi="en0", sleep_minutes=10,
)  # fmt: skip
M2_VIRTUAL = Mac(
    "Apple Virtual Machine 1", "M2 (Virtual)", "15.1", 16, (), {"en0": "192.168.64.2/24"}, wifi="", bridge=False
)
M2_ONE_CABLE = Mac("Mac Studio", "M2 Ultra", "15.3", 128, _ports("studio2", "", "", ""), LAN | SELF_ASSIGNED)
M3_TWO_CABLES = Mac(
    "Mac Studio", "M3 Ultra", "15.5", 512, _ports("studio2", "studio3", "", "", speed="Up to 80 Gb/s"),
    LAN | {"bridge0": "10.254.0.1/24"},
)  # fmt: skip
M4_TRIANGLE = Mac("Mac mini", "M4 Pro", "15.6", 64, _ports("mini2", "mini3", ""), LAN | SELF_ASSIGNED)
M4_DOCK = Mac(
    "MacBook Pro", "M4 Max", "26.1", 128,
    (
        Receptacle("1", "en2", dock="Thunderbolt Dock"),
        Receptacle("2", "en3", peer="studio2", dock="Hub"),
        Receptacle("3", "en4"),
    ),
    {"en0": "192.168.1.40/24", "bridge0": "169.254.3.4/16"}, ethernet="", wifi="en0", sleep_minutes=1,
)  # fmt: skip
M4_NO_BRIDGE = Mac("Mac mini", "M4", "26.0", 16, _ports("mini2", "", ""), LAN, bridge=False)
M5_VPN = Mac(
    "MacBook Pro", "M5", "26.2", 32, _ports("", "", speed="Up to 120 Gb/s"),
    {"en0": "192.168.1.50/24", "utun4": "100.87.1.2/32"}, ethernet="", wifi="en0", vpn="utun4", primary="utun4",
    extra={"bridge100": f"{_UP} mtu 1500 index 30\n\tmember: vmenet0 flags=3<LEARNING,DISCOVER>\n\tstatus: active"},
)  # fmt: skip
BRIDGE_OFF = Mac("Mac Studio", "M2 Max", "15.2", 96, _ports("studio2", ""), LAN, disabled=("bridge0",))

MACS = {
    "M1, Wi-Fi only": M1_WIFI_ONLY,
    "M2, a virtual machine": M2_VIRTUAL,
    "M2, one cable": M2_ONE_CABLE,
    "M3, two cables": M3_TWO_CABLES,
    "M4, a triangle": M4_TRIANGLE,
    "M4, a dock": M4_DOCK,
    "M4, no bridge": M4_NO_BRIDGE,
    "M5, a VPN": M5_VPN,
    "M2, the bridge off": BRIDGE_OFF,
}
