"""Packet filters of a lab's hosts: what a firewall, a wrong MTU or a broken switch does to some packets only.

By port, by size, by direction, with silence or with a reset, made by nftables inside a host's namespace. Decides
nothing about when; the test that sets a filter removes it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Literal

from tests.lab.topology import Host

TABLE = "exodlab"
AVAILABLE = shutil.which("nft") is not None
"""Debian's package nftables."""

RING_PORTS = "52420-52427"

Answer = Literal["silence", "reset"]


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


def filter_ring_port(host: Host, interface: str, answer: Answer) -> None:
    """What comes in on `interface` for the ring's ports, or from them, is dropped or reset."""
    verdict = "drop" if answer == "silence" else "reject with tcp reset"
    _add(
        host,
        f"iifname {interface} tcp dport {RING_PORTS} {verdict}",
        f"iifname {interface} tcp sport {RING_PORTS} {verdict}",
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
