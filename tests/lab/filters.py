"""Packet filters of a lab's hosts: what a firewall, a wrong MTU or a broken switch does to some packets only.

By port, by size, by direction, after so many bytes, at a rate, with silence or with a reset, made by nftables
inside a host's namespace. Decides nothing about when. Who sets a filter removes it; the next one replaces it.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Literal

from tests.lab.topology import Connection, Host

TABLE = "exodlab"
SAMPLE = """table inet exodlab { chain arriving {
    type filter hook input priority 0;
    iifname lo tcp dport 1-2 quota over 8 kbytes reject with tcp reset
    tcp flags & (syn | ack) == syn drop
    tcp sport 1 limit rate over 8 kbytes/second burst 16 kbytes drop
    meta length > 1400 ip saddr 192.0.2.1 drop
}
}"""


def _is_available() -> bool:
    """Debian's package nftables, and a kernel that has all it needs. Tried in a network of its own."""
    if shutil.which("nft") is None or shutil.which("unshare") is None:
        return False
    command = ["unshare", "--net", "nft", "-f", "-"]
    return subprocess.run(command, input=SAMPLE.encode(), capture_output=True, check=False).returncode == 0


AVAILABLE = _is_available()

RING_PORTS = "52420-52427"
FILE_PORTS = "52411-52414"

Answer = Literal["silence", "reset"]
VERDICTS: dict[Answer, str] = {"silence": "drop", "reset": "reject with tcp reset"}


def clear(host: Host) -> None:
    """Adding comes first, because an old nft deletes only what is there."""
    for verb in ("add", "delete"):
        host.run(["nft", verb, "table", "inet", TABLE])


def _add(host: Host, *rules: str) -> None:
    """Rules of the input hook: what arrives at the host."""
    clear(host)
    host.run(["nft", "add", "table", "inet", TABLE])
    host.run(["nft", "add", "chain", "inet", TABLE, "arriving", "{ type filter hook input priority 0; }"])
    for rule in rules:
        host.run(["nft", "add", "rule", "inet", TABLE, "arriving", *rule.split()])


def _of_the_ring(host: Host, interface: str, rest: str) -> None:
    """What comes in on `interface` for the ring's ports, or from them."""
    _add(host, *(f"iifname {interface} tcp {end} {RING_PORTS} {rest}" for end in ("dport", "sport")))


def filter_ring_port(host: Host, interface: str, answer: Answer) -> None:
    _of_the_ring(host, interface, VERDICTS[answer])


def ignore_ring_callers(host: Host, interface: str) -> None:
    """Connections that stand are left alone, a new one is never answered."""
    _add(host, f"iifname {interface} tcp dport {RING_PORTS} tcp flags & (syn | ack) == syn drop")


def end_ring_after(host: Host, interface: str, kibibytes: int, answer: Answer) -> None:
    """So much of the ring passes, and then nothing more."""
    _of_the_ring(host, interface, f"quota over {kibibytes} kbytes {VERDICTS[answer]}")


def slow_ring(host: Host, interface: str, kibibytes_a_second: int) -> None:
    """Probes keep their time: only the ring is slow."""
    _of_the_ring(host, interface, f"limit rate over {kibibytes_a_second} kbytes/second burst 16 kbytes drop")


def slow_files(host: Host, kibibytes_a_second: int) -> None:
    """What is fetched from other nodes comes so fast and no faster, over every path. A frame may have 64 KiB."""
    _add(host, f"tcp sport {FILE_PORTS} limit rate over {kibibytes_a_second} kbytes/second burst 256 kbytes drop")


def reset_connection(host: Host, connection: Connection) -> None:
    """This one of the ring's, at the next packet that comes over it."""
    _add(
        host,
        f"tcp sport {connection.remote_port} tcp dport {connection.local_port} {VERDICTS['reset']}",
    )


def swallow_large(host: Host, interface: str, beyond_bytes: int) -> None:
    """Packets that are longer are lost on the way in, as on a path with a smaller MTU that says nothing."""
    _add(host, f"iifname {interface} meta length > {beyond_bytes} drop")


def deafen(host: Host, address: str, *more: str) -> None:
    """Nothing from these addresses arrives."""
    _add(host, *(f"ip saddr {one} drop" for one in (address, *more)))


@contextlib.contextmanager
def lifted(*hosts: Host) -> Iterator[None]:
    """Whatever is filtered meanwhile is let through again."""
    try:
        yield
    finally:
        for host in hosts:
            clear(host)
