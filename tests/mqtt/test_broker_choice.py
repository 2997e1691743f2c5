"""Which broker a node uses, and what becomes of one that it hosts."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from exod.errors import StartError
from exod.mqtt.broker_address import BrokerAddress, configured_broker
from exod.mqtt.broker_choice import FOLDER_NAME, BrokerHost, sweep_leftovers
from exod.mqtt.broker_probe import Listener, who_listens
from exod.mqtt.mosquitto import CONFIG_NAME, PID_NAME, find_mosquitto
from tests.mqtt.mqtt_parts import free_port, mosquitto, mosquitto_program, until

NOWHERE = "/nonexistent"


@asynccontextmanager
async def hosting(
    setting: str, data_dir: Path, port: int, search_path: str | None = None
) -> AsyncGenerator[BrokerHost, None]:
    async with asyncio.TaskGroup() as tasks:
        host = BrokerHost(setting, data_dir, tasks, port=port, search_path=search_path)
        try:
            yield host
        finally:
            await host.close()


def with_mosquitto() -> str:
    return str(Path(mosquitto_program()).parent)


# --- auto's three choices -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_auto_uses_a_broker_that_answers(tmp_path: Path) -> None:
    port = free_port()
    async with mosquitto(tmp_path / "user", port), hosting("auto", tmp_path, port) as host:
        assert await host.locate() == BrokerAddress("127.0.0.1", port, "found")
    assert not (tmp_path / FOLDER_NAME).exists()


@pytest.mark.anyio
async def test_auto_starts_mosquitto_where_none_answers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    port = free_port()
    async with hosting("auto", tmp_path, port, with_mosquitto()) as host:
        assert str(await host.locate()) == f"mosquitto on 127.0.0.1:{port}"
        assert await who_listens("127.0.0.1", port) is Listener.BROKER
        process = psutil.Process(int((tmp_path / FOLDER_NAME / PID_NAME).read_text()))
        listens = [c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert listens == [("127.0.0.1", port)], "on loopback only"
    assert await who_listens("127.0.0.1", port) is Listener.NOBODY
    assert not process.is_running()
    assert not (tmp_path / FOLDER_NAME).exists()


@pytest.mark.anyio
async def test_auto_takes_the_embedded_broker_where_mosquitto_is_not_installed(tmp_path: Path) -> None:
    port = free_port()
    async with hosting("auto", tmp_path, port, NOWHERE) as host:
        assert str(await host.locate()) == f"embedded on 127.0.0.1:{port}"
        assert await who_listens("127.0.0.1", port) is Listener.BROKER
        assert await who_listens("::1", port) is Listener.NOBODY
    assert await who_listens("127.0.0.1", port) is Listener.NOBODY


@pytest.mark.anyio
async def test_auto_takes_the_embedded_broker_where_mosquitto_does_not_start(tmp_path: Path) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    program.chmod(0o755)
    async with hosting("auto", tmp_path, free_port(), str(tmp_path)) as host:
        assert (await host.locate()).origin == "embedded"


@pytest.mark.anyio
async def test_embedded_does_not_look_for_mosquitto(tmp_path: Path) -> None:
    async with hosting("embedded", tmp_path, free_port(), with_mosquitto()) as host:
        assert (await host.locate()).origin == "embedded"


def test_mosquitto_is_found_in_the_sbin_beside_a_bin_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "sbin").mkdir()
    program = tmp_path / "sbin" / "mosquitto"
    program.write_text("")
    program.chmod(0o755)
    assert find_mosquitto(f"/elsewhere:{tmp_path}/bin") == str(program)
    assert find_mosquitto(f"/elsewhere:{tmp_path}/lib") is None


# --- what else may be on the port ---------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_broker_that_wants_a_password_is_not_displaced_and_the_error_says_what_to_do(
    tmp_path: Path,
) -> None:
    port = free_port()
    async with mosquitto(tmp_path / "user", port, "allow_anonymous false"), hosting("auto", tmp_path, port) as host:
        with pytest.raises(StartError, match=r"no anonymous clients.*mqtt://user:pass@"):
            await host.locate()


@pytest.mark.anyio
@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["another protocol", "nothing"])
async def test_something_else_on_the_port_is_named(tmp_path: Path, says: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not says:
            while await reader.read(100):  # it listens, and never answers
                pass
        writer.write(says)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, hosting("auto", tmp_path, server.sockets[0].getsockname()[1]) as host:
        with pytest.raises(StartError, match="no MQTT broker"):
            await host.locate()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
async def test_a_second_daemon_uses_the_first_ones_broker_and_hosts_when_that_goes(
    tmp_path: Path, kind: str
) -> None:
    port = free_port()
    path = with_mosquitto() if kind == "mosquitto" else NOWHERE
    async with hosting("auto", tmp_path / "second", port, path) as second:
        async with hosting("auto", tmp_path / "first", port, path) as first:
            assert (await first.locate()).origin == kind
            assert (await second.locate()).origin == "found"
        assert (await second.locate()).origin == kind


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
async def test_of_two_that_start_together_one_hosts_and_both_have_a_broker(tmp_path: Path, kind: str) -> None:
    port = free_port()
    path = with_mosquitto() if kind == "mosquitto" else NOWHERE
    async with (
        hosting("auto", tmp_path / "one", port, path) as one,
        hosting("auto", tmp_path / "two", port, path) as two,
    ):
        await asyncio.gather(one.locate(), two.locate())
        await asyncio.sleep(0.2)  # the loser's mosquitto ends by itself
        origins = sorted([(await one.locate()).origin, (await two.locate()).origin])
        assert origins == sorted(["found", kind])


# --- a hosted broker's life ---------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_hosted_mosquitto_that_died_or_hangs_is_replaced(tmp_path: Path, sign: signal.Signals) -> None:
    port = free_port()
    pid_file = tmp_path / FOLDER_NAME / PID_NAME
    async with hosting("auto", tmp_path, port, with_mosquitto()) as host:
        await host.locate()
        pid = int(pid_file.read_text())
        os.kill(pid, sign)
        if sign is signal.SIGKILL:
            await until(lambda: not psutil.pid_exists(pid), "reaped")
        assert (await host.locate()).origin == "mosquitto"
        assert int(pid_file.read_text()) != pid
        assert not psutil.pid_exists(pid)


HOST_AND_HANG = """
import asyncio, sys
from pathlib import Path
from exod.mqtt import mosquitto
from exod.mqtt.broker_choice import BrokerHost
async def main():
    mosquitto.OUTLIVES_S = int(sys.argv[4])
    async with asyncio.TaskGroup() as tasks:
        host = BrokerHost("auto", Path(sys.argv[1]), tasks, port=int(sys.argv[2]), search_path=sys.argv[3])
        print(await host.locate(), flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def a_killed_daemon(folder: Path, port: int, outlives_s: int) -> psutil.Process:
    """The mosquitto that it hosted."""
    daemon = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        HOST_AND_HANG,
        str(folder),
        str(port),
        with_mosquitto(),
        str(outlives_s),
        stdout=asyncio.subprocess.PIPE,
    )
    assert daemon.stdout is not None
    hosts = f"mosquitto on 127.0.0.1:{port}\n".encode()
    while (line := await daemon.stdout.readline()) != hosts:
        assert line, "it ended before it hosted a broker"
    left = psutil.Process(int((folder / FOLDER_NAME / PID_NAME).read_text()))
    daemon.kill()
    await daemon.wait()
    return left


@pytest.mark.anyio
async def test_a_mosquitto_ends_after_its_daemon_was_killed_whatever_became_of_the_folder(tmp_path: Path) -> None:
    port = free_port()
    left = await a_killed_daemon(tmp_path, port, 0)
    shutil.rmtree(tmp_path / FOLDER_NAME)
    await until(lambda: has_ended(left), "it has ended")
    assert await who_listens("127.0.0.1", port) is Listener.NOBODY


@pytest.mark.anyio
async def test_no_watch_is_left_of_a_mosquitto_that_was_stopped(tmp_path: Path) -> None:
    async with hosting("auto", tmp_path, free_port(), with_mosquitto()) as host:
        await host.locate()
        assert len(watches(tmp_path)) == 1
    assert watches(tmp_path) == []


def watches(folder: Path) -> list[psutil.Process]:
    config = str(folder / FOLDER_NAME / CONFIG_NAME)
    return [one for one in psutil.process_iter() if config in (one.cmdline() if not has_ended(one) else [])[4:]]


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.anyio
async def test_a_mosquitto_that_a_killed_daemon_left_is_swept_at_the_next_start(tmp_path: Path) -> None:
    port = free_port()
    left = await a_killed_daemon(tmp_path, port, 20)
    watch, *_ = watches(tmp_path)  # and for a moment what it forks
    assert await who_listens("127.0.0.1", port) is Listener.BROKER, "it stays for the last will"
    await sweep_leftovers(tmp_path)
    assert await who_listens("127.0.0.1", port) is Listener.NOBODY
    assert has_ended(left)
    await until(lambda: has_ended(watch), "nor is anything left that waits for its end")
    assert not (tmp_path / FOLDER_NAME).exists()


@pytest.mark.anyio
async def test_a_process_that_is_not_ours_is_never_touched_whatever_the_pid_file_says(tmp_path: Path) -> None:
    port = free_port()
    folder = tmp_path / FOLDER_NAME
    async with mosquitto(tmp_path / "user", port) as process:
        for text in (f"{process.pid}\n", f"{os.getpid()}\n", "0\n", "no number", "99999999\n"):
            folder.mkdir(exist_ok=True)
            (folder / PID_NAME).write_text(text)
            (folder / CONFIG_NAME).write_text("")
            await sweep_leftovers(tmp_path)
            assert not folder.exists()
        await asyncio.sleep(0.1)
        assert await who_listens("127.0.0.1", port) is Listener.BROKER


@pytest.mark.anyio
async def test_a_cancelled_start_leaves_no_mosquitto(tmp_path: Path) -> None:
    port = free_port()
    with suppress(TimeoutError):
        async with asyncio.timeout(0.02), hosting("auto", tmp_path, port, with_mosquitto()) as host:
            await host.locate()
            await asyncio.sleep(10)
    for _ in range(500):  # one that was cancelled while it was being started is killed, and dies by itself
        if await who_listens("127.0.0.1", port) is Listener.NOBODY:
            return
        await asyncio.sleep(0.01)
    pytest.fail("a mosquitto is left behind")


# --- addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://10.0.0.1", BrokerAddress("10.0.0.1", 1883, "configured")),
        ("mqtt://host:1999", BrokerAddress("host", 1999, "configured")),
        ("mqtts://host", BrokerAddress("host", 8883, "configured", tls=True)),
        ("mqtt://[::1]:1884", BrokerAddress("::1", 1884, "configured")),
        ("mqtt://me:p%40ss%2F@host", BrokerAddress("host", 1883, "configured", False, "me", "p@ss/")),
    ],
)
def test_a_configured_broker_is_read_from_its_url(url: str, expected: BrokerAddress) -> None:
    assert configured_broker(url) == expected


def test_a_password_is_in_no_text() -> None:
    address = configured_broker("mqtt://me:secret@host")
    assert "secret" not in f"{address} {address!r}"
    for url in ("mqtt://me:sec/ret@host", "http://me:secret@host", "mqtt://me:secret@", "mqtt://me:secret@h:1x"):
        with pytest.raises(ValueError, match=r"mqtt\[s\]://user:pass@host:port") as caught:
            configured_broker(url)
        assert "sec" not in str(caught.value)
        assert caught.value.__cause__ is None
