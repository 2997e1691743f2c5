"""The publisher against real brokers: mosquitto, and the corrected embedded one."""

from __future__ import annotations

import asyncio
import datetime
import gc
import ipaddress
import json
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiomqtt
import pytest
import structlog

from exod.model import Event
from exod.mqtt.tls_files import TlsFiles
from exod.mqtt.topic_tree import TopicTree
from exod.mqtt.topics import publications
from tests.conftest import missing
from tests.mqtt.mqtt_parts import (
    BASE,
    A,
    B,
    alert,
    cluster_view,
    free_port,
    listening,
    mosquitto,
    mosquitto_program,
    running,
    service,
    subscriber,
    until,
)

TREE = TopicTree("exo/1", "home")
NOWHERE = "/nonexistent"


@asynccontextmanager
async def some_broker(kind: str, folder: Path) -> AsyncGenerator[tuple[int, str], None]:
    """(port, search path): a service with `auto` there finds a user's mosquitto, or hosts what `kind` says."""
    port = free_port()
    if kind == "user's":
        async with mosquitto(folder / "user", port):
            yield port, NOWHERE
    else:
        yield port, str(Path(mosquitto_program()).parent) if kind == "hosted" else NOWHERE


BROKERS = pytest.mark.parametrize("kind", ["user's", "hosted", "embedded"])


@BROKERS
@pytest.mark.anyio
async def test_the_whole_cluster_is_on_the_broker_and_changes_events_and_alerts_follow(
    kind: str, tmp_path: Path
) -> None:
    async with some_broker(kind, tmp_path) as (port, path):
        mqtt = service(tmp_path, port, search_path=path)
        mqtt.update(cluster_view(alerts=(alert(),)))
        assert mqtt.status.state == "connecting"
        async with running(mqtt.run()):
            await listening(port)
            async with subscriber(port) as found:
                expected = publications(cluster_view(alerts=(alert(),)), TREE, A)
                await until(lambda: set(expected) <= set(found.last), "all topics")
                assert {topic: found.last[topic] for topic in expected} == {
                    topic: publication.payload for topic, publication in expected.items()
                }
                assert mqtt.status.state == "connected"
                assert str(port) in str(mqtt.status.broker)
                mqtt.update(cluster_view(down=(B,)))
                mqtt.emit(Event(3.0, "node.down", B))
                await found.saw(f"{BASE}/node/{B}/availability", b"offline")
                await found.saw(f"{BASE}/alert/no-path--{B}", b"")
                await until(lambda: any("/event/" in topic for topic in found.last), "the event")
        assert mqtt.status.state == "off"


@BROKERS
@pytest.mark.anyio
async def test_a_clean_stop_says_offline_and_takes_less_than_two_seconds(kind: str, tmp_path: Path) -> None:
    async with some_broker(kind, tmp_path) as (port, path):
        mqtt = service(tmp_path, port, search_path=path)
        mqtt.update(cluster_view())
        async with running(mqtt.run()) as task:
            await listening(port)
            async with subscriber(port, f"{BASE}/node/+/availability") as found:
                await found.saw(f"{BASE}/node/{A}/availability", b"online")
                started = time.monotonic()
                task.cancel()
                await asyncio.wait([task])
                assert time.monotonic() - started < 2.0
                await found.saw(f"{BASE}/node/{A}/availability", b"offline")


PUBLISH_AND_HANG = """
import asyncio, sys
from pathlib import Path
from tests.mqtt.mqtt_parts import cluster_view, service
async def main():
    mqtt = service(Path(sys.argv[1]), int(sys.argv[2]))
    mqtt.update(cluster_view())
    await mqtt.run()
asyncio.run(main())
"""


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["user's", "embedded"])
async def test_a_daemon_killed_with_sigkill_is_offline_by_its_last_will(kind: str, tmp_path: Path) -> None:
    async with some_broker(kind, tmp_path) as (port, _):
        host = service(tmp_path / "other", port, node=B, search_path=NOWHERE)
        async with running(host.run()):
            await listening(port)
            daemon = await asyncio.create_subprocess_exec(
                sys.executable, "-c", PUBLISH_AND_HANG, str(tmp_path), str(port), stdout=subprocess.DEVNULL
            )
            async with subscriber(port, f"{BASE}/node/{A}/availability") as found:
                await found.saw(f"{BASE}/node/{A}/availability", b"online")
                daemon.kill()
                await daemon.wait()
                await found.saw(f"{BASE}/node/{A}/availability", b"offline")
            async with subscriber(port, f"{BASE}/node/{A}/availability") as late:
                await late.saw(f"{BASE}/node/{A}/availability", b"offline")
                assert late.messages[0][2], "retained"


@pytest.mark.anyio
async def test_a_broker_that_comes_back_empty_gets_everything_again_and_missed_events(tmp_path: Path) -> None:
    port = free_port()
    mqtt = service(tmp_path, port, broker=f"mqtt://127.0.0.1:{port}")
    mqtt.update(cluster_view())
    async with running(mqtt.run()):
        async with mosquitto(tmp_path / "user", port):
            await until(lambda: mqtt.status.state == "connected", "connected")
        await until(lambda: mqtt.status.state == "connecting", "noticed")
        assert mqtt.status.text
        mqtt.emit(Event(3.0, "node.up", B))
        async with mosquitto(tmp_path / "user", port), subscriber(port) as found:
            expected = set(publications(cluster_view(), TREE, A))
            await until(lambda: expected <= set(found.last), "all topics again")
            await until(lambda: any("/event/" in topic for topic in found.last), "the event of the meantime")


@pytest.mark.anyio
async def test_a_hosted_broker_that_is_killed_is_replaced_and_filled_again(tmp_path: Path) -> None:
    port = free_port()
    mqtt = service(tmp_path, port, search_path=str(Path(mosquitto_program()).parent))
    mqtt.update(cluster_view())
    async with running(mqtt.run()):
        await until(lambda: mqtt.status.state == "connected", "connected")
        pid_file = tmp_path / "broker" / "mosquitto.pid"
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pid_file.exists() and int(pid_file.read_text()) != pid, "another mosquitto")
        await listening(port)
        async with subscriber(port) as found:
            await until(lambda: set(publications(cluster_view(), TREE, A)) <= set(found.last), "all topics")


@pytest.mark.anyio
async def test_alerts_of_an_earlier_life_are_cleared(tmp_path: Path) -> None:
    port = free_port()
    async with mosquitto(tmp_path / "user", port):
        old = service(tmp_path, port)
        old.update(cluster_view(alerts=(alert("old"), alert("lasting"))))
        async with running(old.run()), subscriber(port) as found:
            await until(lambda: f"{BASE}/alert/lasting--{B}" in found.last, "published")
        new = service(tmp_path, port)
        new.update(cluster_view(alerts=(alert("lasting"),)))
        async with running(new.run()), subscriber(port) as found:
            assert found.last.get(f"{BASE}/alert/old--{B}") != b""
            await found.saw(f"{BASE}/alert/old--{B}", b"")
            assert found.last[f"{BASE}/alert/lasting--{B}"]


@pytest.mark.anyio
async def test_two_nodes_on_one_broker_publish_each_its_own_and_a_lost_one_is_offline(tmp_path: Path) -> None:
    port = free_port()

    def author(payload: bytes) -> str:
        return str(json.loads(payload)["by"])

    async with mosquitto(tmp_path / "user", port), subscriber(port) as found:
        a, b = (service(tmp_path / node, port, node=node) for node in (A, B))
        a.update(cluster_view())
        b.update(cluster_view())
        async with running(a.run()):
            async with running(b.run()) as task:
                for node in (A, B):
                    topic = f"{BASE}/node/{node}/state"
                    await until(
                        lambda topic=topic, node=node: topic in found.last and author(found.last[topic]) == node,
                        f"{node} by itself",
                    )
                task.cancel()
            await found.saw(f"{BASE}/node/{B}/availability", b"offline")
            a.update(cluster_view(down=(B,)))
            topic = f"{BASE}/node/{B}/state"
            await until(lambda: json.loads(found.last[topic])["health"] == "down", "said by the other")
            assert author(found.last[topic]) == A
            assert found.last[f"{BASE}/node/{B}/availability"] == b"offline"
            assert found.last[f"{BASE}/node/{A}/availability"] == b"online"


# --- credentials, TLS, bad brokers --------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_password_logs_in_and_is_never_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = shutil.which("mosquitto_passwd")
    if program is None:
        missing("mosquitto_passwd is not installed")
    assert program is not None
    (tmp_path / "user").mkdir()
    passwords = tmp_path / "user" / "passwords"
    made = await asyncio.create_subprocess_exec(program, "-b", "-c", str(passwords), "me", "s3cr3t/@")
    assert await made.wait() == 0
    caplog.set_level(logging.DEBUG)
    port = free_port()
    config = f"allow_anonymous false\npassword_file {passwords}"
    with structlog.testing.capture_logs() as logs:
        async with mosquitto(tmp_path / "user", port, config):
            right = service(tmp_path, port, broker=f"mqtt://me:s3cr3t%2F%40@127.0.0.1:{port}")
            async with running(right.run()):
                await until(lambda: right.status.state == "connected", "logged in")
                assert right.status.broker == f"127.0.0.1:{port}"
            wrong = service(tmp_path, port, broker=f"mqtt://me:s3cr3t@127.0.0.1:{port}")
            async with running(wrong.run()):
                await until(lambda: wrong.status.text != "", "refused")
                assert wrong.status.state == "connecting"
                assert "s3cr3t" not in repr(wrong.status)
    assert any(entry["event"] == "mqtt_connected" for entry in logs)
    assert any(entry["event"] == "mqtt_not_connected" for entry in logs)
    assert "s3cr3t" not in repr(logs)
    assert "s3cr3t" not in caplog.text


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 that is its own authority, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    certificate_file, key_file = folder / "server.crt", folder / "server.key"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate_file, key_file


@pytest.mark.anyio
async def test_mqtts_checks_the_broker_against_the_systems_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = make_certificate(tmp_path / "user")
    port = free_port()
    config = f"allow_anonymous true\ncertfile {certificate}\nkeyfile {key}"
    async with mosquitto(tmp_path / "user", port, config):
        mqtt = service(tmp_path, port, broker=f"mqtts://127.0.0.1:{port}")
        mqtt.update(cluster_view())
        async with running(mqtt.run()):
            await until(lambda: "certificate" in mqtt.status.text.lower(), "an unknown authority is refused")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        mqtt = service(tmp_path, port, broker=f"mqtts://127.0.0.1:{port}")
        async with running(mqtt.run()):
            await until(lambda: mqtt.status.state == "connected", "a known authority is accepted")


@pytest.mark.anyio
async def test_a_broker_that_wants_a_certificate_gets_ours(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path / "user")
    port = free_port()
    tls = f"certfile {certificate}\nkeyfile {key}\ncafile {certificate}\nrequire_certificate true"
    url = f"mqtts://127.0.0.1:{port}"
    async with mosquitto(tmp_path / "user", port, f"allow_anonymous true\n{tls}"):
        without = service(tmp_path, port, broker=url, tls_files=TlsFiles(certificate))
        async with running(without.run()):
            await until(lambda: without.status.text != "", "refused without a certificate")
            assert without.status.state == "connecting"
        mqtt = service(tmp_path, port, broker=url, tls_files=TlsFiles(certificate, certificate, key))
        async with running(mqtt.run()):
            await until(lambda: mqtt.status.state == "connected", "with one it is accepted")
        damaged = tmp_path / "damaged.crt"
        damaged.write_text("no certificate")
        for files in (TlsFiles(damaged), TlsFiles(certificate, damaged, key), TlsFiles(tmp_path / "none")):
            wrong = service(tmp_path, port, broker=url, tls_files=files)
            async with running(wrong.run()):
                await until(lambda: "cannot be used" in wrong.status.text, "the file is named")  # noqa: B023
                assert str(tmp_path) in wrong.status.text


@pytest.mark.anyio
async def test_a_command_is_taken_where_it_is_allowed_once_a_second_and_never_an_old_one(tmp_path: Path) -> None:
    port = free_port()
    asked: list[str] = []
    topic = TREE.command(A)
    async with mosquitto(tmp_path / "user", port), aiomqtt.Client("127.0.0.1", port) as client:
        await client.publish(topic, "renegotiate", qos=1, retain=True)
        allowed = service(tmp_path, port, renegotiate=lambda: asked.append("new plan"))
        deaf = service(tmp_path, port, node=B)
        async with running(allowed.run()), running(deaf.run()):
            await until(lambda: allowed.status.state == deaf.status.state == "connected", "both connected")
            for payload in ("format c:", "", "renegotiate", "renegotiate"):
                await client.publish(topic, payload, qos=1)
            await client.publish(TREE.command(B), "renegotiate", qos=1)
            await until(lambda: asked != [], "the command arrived")
            await asyncio.sleep(0.3)  # what would come too much has come by now
    assert asked == ["new plan"], "the retained one is old, others are no command, and two in a second are one"


@pytest.mark.anyio
async def test_a_broker_that_takes_the_connection_and_never_answers_does_not_hold_up_the_end(
    tmp_path: Path,
) -> None:
    async def swallow(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    mqtt = service(tmp_path, port, broker=f"mqtt://127.0.0.1:{port}")
    async with server, running(mqtt.run()) as task:
        await asyncio.sleep(0.5)
        assert mqtt.status.state == "connecting"
        started = time.monotonic()
        task.cancel()
        await asyncio.wait([task])
        assert time.monotonic() - started < 2.0


@pytest.mark.anyio
async def test_a_broker_that_hangs_while_connected_does_not_hold_up_the_end(tmp_path: Path) -> None:
    port = free_port()
    mqtt = service(tmp_path, port, broker=f"mqtt://127.0.0.1:{port}")
    mqtt.update(cluster_view())
    async with mosquitto(tmp_path / "user", port) as process, running(mqtt.run()) as task:
        await until(lambda: mqtt.status.state == "connected", "connected")
        process.send_signal(signal.SIGSTOP)
        mqtt.update(cluster_view(down=(B,)))
        await asyncio.sleep(0.3)
        started = time.monotonic()
        task.cancel()
        await asyncio.wait([task])
        assert time.monotonic() - started < 2.5
        assert task.cancelled()


@pytest.mark.anyio
async def test_a_broker_that_resets_connections_is_tried_again_and_upsets_nothing(tmp_path: Path) -> None:
    """Several packets and a reset at once: uvloop drops its handle of such a socket before all are read, and the
    next write would raise in a callback of the loop (which fails this test).
    """
    connections = 0

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        try:
            await reader.readexactly(2)
        except asyncio.IncompleteReadError:
            return  # the service looks first whether anybody listens
        connections += 1
        writer.write(b"\x20\x02\x00\x00")
        await reader.read(4096)
        await reader.read(4096)
        writer.write(b"\x90\x08\x00\x01" + bytes(6))
        await reader.read(4096)
        writer.write(b"\x30\x05\x00\x01ahi" * 20)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    mqtt = service(tmp_path, port, broker=f"mqtt://127.0.0.1:{port}")
    mqtt.update(cluster_view())
    async with server, running(mqtt.run()):
        await until(lambda: connections >= 2, "tried again")


@pytest.mark.anyio
async def test_one_reason_is_logged_once_however_often_it_is_tried(tmp_path: Path) -> None:
    port = free_port()
    mqtt = service(tmp_path, port, broker=f"mqtt://127.0.0.1:{port}")
    with structlog.testing.capture_logs() as logs:
        async with running(mqtt.run()):
            await asyncio.sleep(1.2)
    assert [entry["event"] for entry in logs] == ["mqtt_not_connected"]
    assert f"127.0.0.1:{port} cannot be reached" in logs[0]["text"]


@pytest.mark.anyio
async def test_a_broker_that_closes_each_connection_is_named_with_a_cure_and_upsets_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As one does whose rules let this client do nothing: it takes the connection and closes it."""
    connections = 0

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        if await reader.read(4096):
            connections += 1
            writer.write(b"\x20\x02\x00\x00")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    mqtt = service(tmp_path, port, broker=f"mqtt://127.0.0.1:{port}")
    async with server, running(mqtt.run()):
        await until(lambda: mqtt.status.text and connections >= 4, "tried again")
        assert mqtt.status.state == "connecting"
        assert "closes the connection and gives no reason: look into its log" in mqtt.status.text
    gc.collect()
    assert "never retrieved" not in caplog.text


@pytest.mark.anyio
async def test_a_broker_that_sends_garbage_is_called_no_broker(tmp_path: Path) -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n" * 4)
        with suppress(OSError):
            await reader.read(1024)
        writer.close()

    server = await asyncio.start_server(garbage, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    mqtt = service(tmp_path, port, broker=f"mqtt://127.0.0.1:{port}")
    async with server, running(mqtt.run()):
        await until(lambda: bool(mqtt.status.text), "a reason")
        assert mqtt.status.text == f"what listens on 127.0.0.1:{port} is no MQTT broker: set mqtt.broker"


@pytest.mark.anyio
async def test_off_publishes_nothing_and_starts_nothing(tmp_path: Path) -> None:
    port = free_port()
    mqtt = service(tmp_path, port, broker="off")
    mqtt.update(cluster_view())
    mqtt.emit(Event(1.0, "node.up", A))
    await mqtt.run()
    assert mqtt.status.state == "off"
    with pytest.raises(aiomqtt.MqttError):
        async with aiomqtt.Client("127.0.0.1", port):
            pass
