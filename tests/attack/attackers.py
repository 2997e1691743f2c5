"""What strangers do to a node all at once. Each attacker is a function that goes on until it is told to end; it
never fails, whatever the node does to it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

from exod.core.probe.datagram import encode
from exod.model import NodeId
from exod.peers.trust import tls_contexts
from tests.fuzz import targets
from tests.fuzz.mutate import mutated
from tests.http.worst_bodies import BURSTS, WORST_BODIES

MDNS: Final = ("224.0.0.251", 5353)
PAUSE_S: Final = 0.02
"""Between two rounds of an attacker: all of them together are to leave the node half of a small machine."""

SILENT: Final = 520

BEGINNINGS: Final = (b"POST /v1/chat", b"GET / HTTP/1.1\r\nhost: localhost\r\n", b"\x16\x03")

Ended = threading.Event


class Ports:
    def __init__(self, http: int, mesh: int, control_socket: Path) -> None:
        self.http, self.mesh, self.control_socket = http, mesh, control_socket


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def spoofed_datagrams(ports: Ports, ended: Ended, random: Random) -> int:
    count = 0
    good = encode(targets.DATAGRAM, bytes(32))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while not ended.wait(PAUSE_S):
            for _ in range(50):
                with contextlib.suppress(OSError):
                    sender.sendto(mutated((good,), random)[:1400], ("127.0.0.1", ports.mesh))
                count += 1
    return count


def silent_connections(ports: Ports, ended: Ended, random: Random) -> int:
    held: list[socket.socket] = []
    count = 0
    while not ended.wait(PAUSE_S):
        with contextlib.suppress(OSError):
            held.append(_connect(random.choice((ports.http, ports.http, ports.http, ports.mesh))))
            count += 1
            if random.random() < 0.5:
                held[-1].sendall(
                    random.choice((b"POST /v1/chat", b"GET / HTTP/1.1\r\nhost: localhost\r\n", b"\x16\x03"))
                )
        if len(held) > SILENT:
            held.pop(0).close()
    for connection in held:
        connection.close()
    return count


def slow_bodies(ports: Ports, ended: Ended, random: Random) -> int:
    held: list[socket.socket] = []
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n{"
    count = 0
    while not ended.wait(5 * PAUSE_S):
        with contextlib.suppress(OSError):
            held.append(_connect(ports.http))
            held[-1].sendall(head)
            count += 1
        for connection in held[-20:]:
            with contextlib.suppress(OSError):
                connection.sendall(b" ")
        if len(held) > 60:
            held.pop(0).close()
    for connection in held:
        connection.close()
    return count


def hostile_pages(ports: Ports, ended: Ended, random: Random) -> int:
    """Asks as a page could; returns how often, and raises where a page was let in."""
    lines = (
        "origin: null",
        "origin: https://evil.example",
        "origin: http://192.168.1.7",
        "sec-fetch-site: cross-site",
        "host: evil.example",
    )
    body = b'{"messages":[{"role":"user","content":"count from 1 to 900"}]}'
    count = 0
    while not ended.wait(5 * PAUSE_S):
        line = random.choice(lines)
        host = "" if line.startswith("host") else "host: localhost\r\n"
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\n{host}{line}\r\ncontent-type: text/plain\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        with contextlib.suppress(OSError), _connect(ports.http) as connection:
            connection.sendall(head.encode() + body)
            answer = connection.recv(65536)
            count += 1
            if answer and answer.split()[1] not in (b"403", b"415", b"503"):
                raise AssertionError(f"a page was let in: {line}: {answer[:200]!r}")
    return count


def worst_bodies(ports: Ports, ended: Ended, random: Random) -> int:
    count = 0
    names = sorted(WORST_BODIES)
    while not ended.wait(0.5):
        data = WORST_BODIES[random.choice(names)]
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n".encode()
        with contextlib.suppress(OSError), _connect(ports.http) as connection:
            connection.sendall(head + data)
            connection.recv(65536)
            count += 1
    return count


def bursts(ports: Ports, ended: Ended, random: Random) -> int:
    """Whole requests on many connections at one moment."""
    count = 0
    names = sorted(BURSTS)
    while not ended.wait(2.0):
        data = BURSTS[random.choice(names)]
        connections: list[socket.socket] = []
        with contextlib.suppress(OSError):
            connections += (_connect(ports.http) for _ in range(80))
        for connection in connections:
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                connection.send(data)
        count += 1
        for connection in connections:
            connection.settimeout(5)
            with contextlib.suppress(OSError):
                connection.recv(65536)
            connection.close()
    return count


def garbage(ports: Ports, ended: Ended, random: Random) -> int:
    """On every port, and on the control socket."""
    seeds = {ports.http: targets.HEADS, ports.mesh: (targets.client_hello(),)}
    count = 0
    while not ended.wait(2 * PAUSE_S):
        port = random.choice((ports.http, ports.mesh))
        with contextlib.suppress(OSError), _connect(port) as connection:
            connection.sendall(mutated(seeds[port], random))
            count += 1
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as control:
            control.settimeout(5)
            control.connect(str(ports.control_socket))
            control.sendall(random.randbytes(50).replace(b"\n", b"") + b"\n")
            control.recv(65536)
            count += 1
    return count


def strangers_with_another_key(ports: Ports, ended: Ended, random: Random) -> int:
    count = 0
    _, client = tls_contexts(b"x" * 32, NodeId("9" * 16))
    while not ended.wait(0.2):
        with contextlib.suppress(OSError, ssl.SSLError):
            client.wrap_socket(_connect(ports.mesh)).close()
        count += 1
    return count


def mdns_flood(ports: Ports, ended: Ended, random: Random) -> int:
    """Announcements of nodes that are none, on loopback."""
    (good,) = targets.mdns_packets()
    count = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        while not ended.wait(PAUSE_S):
            node = f"{random.getrandbits(64):016x}".encode()
            for data in (good.replace(b"00000000000000aa", node), mutated((good,), random)):
                with contextlib.suppress(OSError):
                    sender.sendto(data[:1400], MDNS)
                count += 1
    return count


ATTACKERS: Final[tuple[Callable[[Ports, Ended, Random], int], ...]] = (
    spoofed_datagrams,
    silent_connections,
    slow_bodies,
    hostile_pages,
    worst_bodies,
    bursts,
    garbage,
    strangers_with_another_key,
    mdns_flood,
)


def attack(ports: Ports, seconds: float, seed: int, only: str) -> dict[str, int | str]:
    """All of them, or those with `only` in their names, for so long; how often each struck, or why it stopped."""
    ended = threading.Event()
    struck: dict[str, int | str] = {}

    def run(attacker: Callable[[Ports, Ended, Random], int]) -> None:
        try:
            struck[attacker.__name__] = attacker(ports, ended, Random(f"{seed} {attacker.__name__}"))
        except Exception as error:
            struck[attacker.__name__] = f"{type(error).__name__}: {error}"

    threads = [
        threading.Thread(target=run, args=(one,), name=one.__name__) for one in ATTACKERS if only in one.__name__
    ]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    ended.set()
    for thread in threads:
        thread.join(60)
    return struck


def strike(http: int, mesh: int, control: str, seconds: float, seed: int, only: str, result: Any) -> None:
    """In a process of its own; `result` is a queue for what `attack` returns."""
    result.put(attack(Ports(http, mesh, Path(control)), seconds, seed, only))
