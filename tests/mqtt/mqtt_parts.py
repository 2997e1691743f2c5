"""Parts of the MQTT tests: a small cluster's view, a free port, a subscriber, a raw client, a mosquitto."""

from __future__ import annotations

import asyncio
import getpass
import shutil
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiomqtt

from exod.daemon_api.mqtt_view import MqttAlert, MqttEngine, MqttLink, MqttMesh, MqttNode, MqttView, NodeMemory
from exod.model import EngineState, Health, Kind, MeshState, NodeId, NodeState, PathId, Reason
from exod.mqtt.broker_probe import Listener, who_listens
from exod.mqtt.publisher import MqttService
from tests.conftest import missing

A = NodeId("a" * 16)
B = NodeId("b" * 16)
C = NodeId("c" * 16)
BASE = "exo/1/home"

DEADLINE_S = 20.0
"""For anything that takes well under a second on an idle machine."""


def cluster_view(
    *,
    down: tuple[NodeId, ...] = (),
    nodes: tuple[NodeId, ...] = (A, B),
    alerts: tuple[MqttAlert, ...] = (),
    rtt_ms: float = 0.31,
    uptime_s: float = 10.0,
    reasons: tuple[Reason, ...] = (),
) -> MqttView:
    """Nodes A and B (and C) on a Thunderbolt link, as one of them knows them."""
    return MqttView(
        nodes=tuple(
            MqttNode(
                id=node,
                name=f"studio-{node[0]}",
                state=NodeState.DOWN if node in down else NodeState.UP,
                version="0.1.0",
                health=Health.HEALTHY,
                reasons=reasons,
                uptime_s=uptime_s,
                memory=NodeMemory(model_mib=1024, total_mib=2048, used_mib=512),
            )
            for node in nodes
        ),
        links=(MqttLink(A, B, True, PathId("10.0.0.1-10.0.0.2"), Kind.THUNDERBOLT, "bridge0", rtt_ms, 0.0, 1.0),),
        mesh=MqttMesh(MeshState.AGREED, 4, A, nodes, nodes, "all acked"),
        engines=tuple(
            MqttEngine(node, EngineState.READY, "embedded:count", (rank, rank + 1), 24.0, "fast", "short context")
            for rank, node in enumerate(nodes)
        ),
        alerts=alerts,
    )


def alert(code: str = "no-path", subject: str = B, node: NodeId = A) -> MqttAlert:
    return MqttAlert(code, subject, "error", f"{code} for {subject}", "mend it", 5.0, node)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mosquitto_program() -> str:
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        missing("mosquitto is not installed")
    assert program is not None
    return program


def service(
    data_dir: Path,
    port: int,
    *,
    broker: str = "auto",
    node: NodeId = A,
    search_path: str | None = None,
    **more: Any,
) -> MqttService:
    return MqttService(
        broker=broker,
        prefix="exo/1",
        cluster="home",
        node_id=node,
        incarnation=7,
        data_dir=data_dir,
        port=port,
        search_path=search_path,
        **more,
    )


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncGenerator[asyncio.Task[None], None]:
    """`work` as a task for the length of the block, then cancelled; its own end or error is raised here."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(true: Callable[[], bool], what: str) -> None:
    """Waits until `true()`, which it becomes within DEADLINE_S."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not true():  # noqa: ASYNC110 - what is waited for is in other processes
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S:g} s: {what}") from None


class Subscriber:
    """What one real client was sent: the last payload of each topic, and everything in order."""

    def __init__(self) -> None:
        self.last: dict[str, bytes] = {}
        self.messages: list[tuple[str, bytes, bool]] = []

    async def saw(self, topic: str, payload: bytes) -> None:
        await until(lambda: self.last.get(topic) == payload, f"{topic} = {payload!r}, but {self.last.get(topic)!r}")

    async def listen(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            self.last[str(message.topic)] = message.payload
            self.messages.append((str(message.topic), message.payload, bool(message.retain)))


@asynccontextmanager
async def subscriber(port: int, topic: str = "#", **options: Any) -> AsyncGenerator[Subscriber, None]:
    found = Subscriber()
    async with aiomqtt.Client("127.0.0.1", port, **options) as client:
        await client.subscribe(topic, qos=1)
        listening = asyncio.create_task(found.listen(client))
        try:
            yield found
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError, aiomqtt.MqttError):
                await listening


@asynccontextmanager
async def mosquitto(
    folder: Path, port: int, config: str = "allow_anonymous true"
) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """A user's own broker: a real mosquitto on loopback."""
    file = _user_config(folder, port, config)
    process = await asyncio.create_subprocess_exec(
        mosquitto_program(), "-c", str(file), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await listening(port)
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _user_config(folder: Path, port: int, config: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "user.conf"
    file.write_text(f"listener {port} 127.0.0.1\npersistence false\nuser {getpass.getuser()}\n{config}\n")
    return file


async def listening(port: int) -> None:
    """Waits until somebody listens on `port`."""
    async with asyncio.timeout(DEADLINE_S):
        while await who_listens("127.0.0.1", port) is Listener.NOBODY:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


class RawClient:
    """Speaks MQTT 3.1.1 byte by byte, so that it can stay silent as no library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(
        cls, port: int, client_id: str, keepalive_s: int, will_topic: str, retain: bool = False
    ) -> RawClient:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        flags = 0x02 | 0x04 | (0x20 if retain else 0)
        body = b"\x00\x04MQTT\x04" + bytes([flags]) + keepalive_s.to_bytes(2, "big")
        for text in (client_id, will_topic, "gone"):
            body += len(text).to_bytes(2, "big") + text.encode()
        writer.write(bytes((0x10, len(body))) + body)
        assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
        return cls(reader, writer)

    async def ping(self) -> None:
        self.writer.write(b"\xc0\x00")
        assert await self.reader.readexactly(2) == b"\xd0\x00"

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def closed(self) -> None:
        """Waits until the broker has closed the connection."""
        async with asyncio.timeout(DEADLINE_S):
            with suppress(ConnectionError):
                await self.reader.read()

    def close(self) -> None:
        self.writer.close()
