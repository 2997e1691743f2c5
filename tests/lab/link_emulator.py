"""The link emulator: one process that carries the frames of all emulated links of a lab.

    python -m tests.lab.link_emulator LAB CONTROL_SOCKET

Decides, for each frame and each direction, whether it arrives and when. Never invents, changes or reorders frames:
jitter delays, and a later frame never overtakes an earlier one. A segment joins two or more ports; with more than
two it is a switch that learns addresses. A port is a TAP device made in a host's namespace, or an existing device
taken over through a packet socket. `emulator.Emulator` starts and commands it; it ends with that process, and if
that process died suddenly it removes the lab's namespaces too.

Frames carry the virtio header, so segmentation and checksum offload work across the link: a TCP stream passes as
frames of up to 64 KiB, and `loss` counts such a frame as one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tests.lab.netns import entered, remove_lab

# linux/if_tun.h, linux/if_packet.h, linux/if_ether.h
TUNSETIFF, TUNSETOFFLOAD, TUNSETCARRIER = 0x400454CA, 0x400454D0, 0x400454E2
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 0x01, 0x02, 0x04
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL = 0x0003
# struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
VIRTIO = struct.Struct("=BBHHHH")
TARGET_MAC = slice(VIRTIO.size, VIRTIO.size + 6)
SOURCE_MAC = slice(VIRTIO.size + 6, VIRTIO.size + 12)
# The largest offloaded frame, its headers and room to notice a larger one.
FRAME_BYTES = 65536 + 256
# Frames taken from one port before the others get their turn: enough to spread the cost of waking up.
FRAMES_A_TURN = 32
# A delayed direction holds at most this many frames, as a queue would; what comes on top is dropped.
FRAMES_IN_FLIGHT = 10_000
SCHEDULER_PRIORITY = 1


@dataclass(frozen=True, slots=True)
class Conditions:
    """What one direction does to frames."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0  # uniform, on top of the delay
    loss: float = 0.0  # 0..1, each frame by itself
    cut: bool = False
    drop_over_bytes: int = 0  # drops frames that are longer than this on the wire; 0: none

    def __post_init__(self) -> None:
        if min(self.delay_ms, self.jitter_ms, self.drop_over_bytes) < 0 or not 0 <= self.loss <= 1:
            raise ValueError(f"not a possible link: {self}")

    def changed(self, changes: dict[str, Any]) -> Conditions:
        """These conditions with `changes`; an unknown name is a ValueError that lists the known ones."""
        known = [field.name for field in fields(self)]
        if unknown := set(changes) - set(known):
            raise ValueError(f"unknown condition {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return replace(self, **changes)


CLEAR = Conditions()


def open_tap(device: str) -> int:
    """Creates TAP `device` in the present namespace; it lives as long as the descriptor returned."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    try:
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
        fcntl.ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    except OSError:
        os.close(tap)
        raise
    return tap


def open_packet_socket(device: str) -> int:
    """A descriptor that reads what arrives at `device` of the present namespace, and sends from it."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packets:
        packets.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        packets.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        packets.setblocking(False)
        packets.bind((device, ETH_P_ALL))
        return packets.detach()


OPENERS: dict[str, Callable[[str], int]] = {"tap": open_tap, "packet": open_packet_socket}


class Pipe:
    """One direction between two ports. `offer` a frame, `deliver` what is due."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.conditions = CLEAR
        self.in_flight: deque[tuple[float, bytes]] = deque()  # (due, frame), in order of both
        self.carried = 0
        self.dropped = 0

    def set(self, conditions: Conditions) -> None:
        self.conditions = conditions
        if conditions.cut:
            self.dropped += len(self.in_flight)
            self.in_flight.clear()  # what was on the cable is lost with it

    def offer(self, frame: memoryview) -> None:
        """Writes, queues or drops `frame`; copies it only where it has to wait."""
        conditions = self.conditions
        if conditions is not CLEAR and self._is_lost(frame, conditions):
            self.dropped += 1
            return
        delay_ms = conditions.delay_ms
        if conditions.jitter_ms:
            delay_ms += random.random() * conditions.jitter_ms
        if delay_ms == 0 and not self.in_flight:
            self._write(frame)
        elif len(self.in_flight) >= FRAMES_IN_FLIGHT:
            self.dropped += 1
        else:
            due = time.monotonic() + delay_ms / 1e3
            if self.in_flight:
                due = max(due, self.in_flight[-1][0])
            self.in_flight.append((due, bytes(frame)))

    @staticmethod
    def _is_lost(frame: memoryview, conditions: Conditions) -> bool:
        if conditions.cut:
            return True
        if conditions.loss and random.random() < conditions.loss:
            return True
        if not conditions.drop_over_bytes:
            return False
        _, gso_type, header_bytes, segment_bytes, _, _ = VIRTIO.unpack_from(frame)
        wire_bytes = header_bytes + segment_bytes if gso_type else len(frame) - VIRTIO.size
        return wire_bytes > conditions.drop_over_bytes

    def deliver(self, now: float) -> None:
        queue = self.in_flight
        while queue and queue[0][0] <= now:
            self._write(queue.popleft()[1])

    def _write(self, frame: memoryview | bytes) -> None:
        try:
            os.write(self.target, frame)
        except OSError:
            self.dropped += 1  # the far device is down or its queue is full
        else:
            self.carried += 1


class Port:
    """One end of a segment, with a pipe to every other end."""

    def __init__(self, descriptor: int, via: str) -> None:
        self.descriptor = descriptor
        self.via = via
        self.pipes: dict[str, Pipe] = {}


class Segment:
    """Ports that hear each other: a cable, or a switch."""

    def __init__(self, ports: dict[str, Port]) -> None:
        self.ports = ports
        self.stations: dict[bytes, str] = {}  # hardware address -> port, learned from what it sent
        for name, port in ports.items():
            port.pipes = {other: Pipe(ports[other].descriptor) for other in ports if other != name}

    def forward(self, arrived_at: str, frame: memoryview) -> None:
        pipes = self.ports[arrived_at].pipes
        if len(pipes) > 1:
            self.stations[bytes(frame[SOURCE_MAC])] = arrived_at
            station = self.stations.get(bytes(frame[TARGET_MAC]))
            if station is not None:
                if station != arrived_at:
                    pipes[station].offer(frame)
                return
        for pipe in pipes.values():
            pipe.offer(frame)

    def pipes(self, source: str | None, target: str | None) -> list[tuple[str, str, Pipe]]:
        """The directions from `source` to `target`; None stands for every port."""
        for name in (source, target):
            if name is not None and name not in self.ports:
                raise ValueError(f"no port {name}; there are {', '.join(self.ports)}")
        return [
            (name, other, pipe)
            for name, port in self.ports.items()
            if source in (None, name)
            for other, pipe in port.pipes.items()
            if target in (None, other)
        ]


class Emulator:
    """The loop: frames, due times and commands. One thread, no copies on an undisturbed link."""

    def __init__(self, control_socket: str) -> None:
        self.segments: dict[str, Segment] = {}
        self.pipes: list[Pipe] = []  # all of all segments
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[], None]] = {}
        self.buffer = bytearray(FRAME_BYTES)
        self.view = memoryview(self.buffer)
        self.said_goodbye = False
        self.running = True
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(control_socket)
        self.listener.listen()
        self._watch(self.listener.fileno(), self._accept)
        self._watch(sys.stdin.fileno(), self._parent_is_gone)

    def run(self) -> None:
        poll, handlers = self.epoll.poll, self.handlers
        while self.running:
            due = self._next_due()
            if due is None:
                events = poll()
            else:
                # epoll counts in ms; select on it counts in µs.
                select.select([self.epoll], [], [], max(0.0, due - time.monotonic()))
                self._deliver()
                events = poll(0)
            for descriptor, _ in events:
                if handler := handlers.get(descriptor):
                    handler()

    def _next_due(self) -> float | None:
        return min((pipe.in_flight[0][0] for pipe in self.pipes if pipe.in_flight), default=None)

    def _deliver(self) -> None:
        now = time.monotonic()
        for pipe in self.pipes:
            if pipe.in_flight:
                pipe.deliver(now)

    def _watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        self.handlers[descriptor] = handler
        self.epoll.register(descriptor, select.EPOLLIN)

    def _forget(self, descriptor: int) -> None:
        if self.handlers.pop(descriptor, None):
            with contextlib.suppress(OSError):
                self.epoll.unregister(descriptor)

    def _receive(self, segment: Segment, name: str, descriptor: int) -> None:
        buffers, view = [self.buffer], self.view
        for _ in range(FRAMES_A_TURN):
            try:
                length = os.readv(descriptor, buffers)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # down is not gone: it may come up again
                    self._forget(descriptor)
                return
            segment.forward(name, view[:length])

    # Commands

    def _parent_is_gone(self) -> None:
        self.running = False

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        received = bytearray()

        def read() -> None:
            chunk = b""
            with contextlib.suppress(ConnectionError):  # it was killed before it had read our answer
                chunk = client.recv(65536)
                received.extend(chunk)
                while b"\n" in received:
                    line, _, rest = bytes(received).partition(b"\n")
                    received[:] = rest
                    client.sendall(json.dumps(self._answer(line)).encode() + b"\n")
            if not chunk:
                self._forget(client.fileno())
                client.close()

        self._watch(client.fileno(), read)

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            command = json.loads(line)
            match command.pop("op"):
                case "add":
                    return {"ok": True, **self.add(**command)}
                case "remove":
                    return {"ok": True, **self.remove(**command)}
                case "set":
                    return {"ok": True, **self.set(**command)}
                case "carrier":
                    return {"ok": True, **self.carrier(**command)}
                case "stats":
                    return {"ok": True, **self.stats()}
                case "quit":
                    self.said_goodbye, self.running = True, False
                    return {"ok": True}
                case other:
                    raise ValueError(f"unknown command {other}")
        except (ValueError, KeyError, TypeError, OSError) as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def add(self, segment: str, ports: dict[str, dict[str, str]]) -> dict[str, Any]:
        """Makes a segment. Each port: `netns`, `device`, and `via` tap or packet."""
        if segment in self.segments:
            raise ValueError(f"segment {segment} exists")
        opened: dict[str, Port] = {}
        try:
            for name, port in ports.items():
                with entered(port["netns"]):
                    opened[name] = Port(OPENERS[port["via"]](port["device"]), port["via"])
        except BaseException:
            for made in opened.values():
                os.close(made.descriptor)
            raise
        made_segment = self.segments[segment] = Segment(opened)
        for name, made in opened.items():
            self._watch(made.descriptor, self._receiver(made_segment, name, made.descriptor))
        self._list_pipes()
        return {}

    def _receiver(self, segment: Segment, name: str, descriptor: int) -> Callable[[], None]:
        return lambda: self._receive(segment, name, descriptor)

    def remove(self, segment: str) -> dict[str, Any]:
        """Ends a segment; its TAP devices vanish from their namespaces."""
        for port in self.segments.pop(segment).ports.values():
            self._forget(port.descriptor)
            os.close(port.descriptor)
        self._list_pipes()
        return {}

    def set(
        self, segment: str, changes: dict[str, Any], source: str | None = None, target: str | None = None
    ) -> dict[str, Any]:
        """Changes conditions from `source` to `target`, every port where None; {} changes makes them clear."""
        chosen = self.segments[segment].pipes(source, target)
        wanted = [pipe.conditions.changed(changes) if changes else CLEAR for _, _, pipe in chosen]
        for (_, _, pipe), conditions in zip(chosen, wanted, strict=True):
            pipe.set(CLEAR if conditions == CLEAR else conditions)
        return {}

    def carrier(self, segment: str, up: bool, port: str | None = None) -> dict[str, Any]:
        """Raises or drops the carrier of TAP ports, as plugging a cable does."""
        for name, found in self.segments[segment].ports.items():
            if port in (None, name) and found.via == "tap":
                fcntl.ioctl(found.descriptor, TUNSETCARRIER, struct.pack("i", int(up)))
        return {}

    def stats(self) -> dict[str, Any]:
        """For each direction `segment/from>to`: conditions, frames carried, dropped and in flight."""
        return {
            "directions": {
                f"{segment_name}/{source}>{target}": {
                    "conditions": asdict(pipe.conditions),
                    "carried": pipe.carried,
                    "dropped": pipe.dropped,
                    "in_flight": len(pipe.in_flight),
                }
                for segment_name, segment in self.segments.items()
                for source, target, pipe in segment.pipes(None, None)
            }
        }

    def _list_pipes(self) -> None:
        self.pipes = [pipe for segment in self.segments.values() for _, _, pipe in segment.pipes(None, None)]


def main() -> None:
    lab, control_socket = sys.argv[1:]
    # A cable does not wait for a processor: run before the spinning ranks that it connects, where allowed.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(SCHEDULER_PRIORITY))
    emulator = Emulator(control_socket)
    print("ready", flush=True)
    try:
        emulator.run()
    finally:
        if not emulator.said_goodbye:
            remove_lab(lab)


if __name__ == "__main__":
    main()
