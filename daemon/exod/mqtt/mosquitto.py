"""One mosquitto as a child of the daemon: its configuration, its start, its end, and what an earlier life left.

It listens on loopback only, keeps nothing on disk, and is bounded in clients, queues and memory. What it says goes
to the daemon's log through a pipe, warnings and errors only: there is no log file that could grow. It does not die
with the daemon at once: it must still publish the last will of a daemon that was killed. A watch beside it, which
reads from a pipe that the daemon holds, ends it OUTLIVES_S later; a start that comes sooner sweeps it (`sweep`), by
pid file. Both look at its command line, which names our configuration file: a process that is not ours is never
touched.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import structlog

from exod.errors import StartError
from exod.mqtt.broker_address import LOOPBACK, BrokerAddress
from exod.mqtt.broker_probe import Listener, who_listens

START_S: Final = 5.0
"""mosquitto listens some 20 ms after its start; a busy machine may need much longer."""

POLL_S: Final = 0.03
"""Between two looks whether it answers yet."""

STOP_S: Final = 1.0
"""mosquitto ends within milliseconds of SIGTERM; after this it is killed. Leaves room in the daemon's own 2 s."""

OUTLIVES_S: Final = 5
"""A will is published within milliseconds of the daemon's end; a busy machine may need much longer."""

WATCH: Final = """\
read -r _
left=$1
while [ "$left" -gt 0 ] && kill -0 "$2"; do sleep 1; left=$((left - 1)); done
{ cat "/proc/$2/cmdline" || ps -o args= -p "$2"; } | grep -qF -- "$3" && kill "$2"
"""
"""For a shell, with whole seconds, the pid and the configuration file. The read ends when the pipe does, however
the daemon dies. The kernel's signal at a parent's death (prctl) is Linux's alone, and lost where mosquitto gives up
root."""

CONFIG_NAME: Final = "mosquitto.conf"
PID_NAME: Final = "mosquitto.pid"

MAX_LOG_LINES: Final = 200
"""Lines of its log that are passed on in one life; more of them would say nothing new."""

CONFIG: Final = """\
# Written by exod at each start of its own broker; changes are lost.
listener {port} {host}
allow_anonymous true
# Nothing outlives the daemon: it publishes everything again when it connects.
persistence false
# Far more than a cluster's daemons and a household's subscribers.
max_connections 128
# A slow subscriber loses messages, not the broker its memory. One full set of topics is below 200 messages.
max_inflight_messages 20
max_queued_messages 1000
max_queued_bytes 4194304
max_packet_size 262144
memory_limit 67108864
persistent_client_expiration 1h
sys_interval 0
connection_messages false
log_dest stderr
log_type error
log_type warning
"""

_log = structlog.get_logger()


def find_mosquitto(search_path: str) -> str | None:
    """The program on `search_path`, or in the `sbin` beside one of its `bin` folders: Debian and Homebrew install
    it there, and a user's or launchd's PATH often lacks those.
    """
    folders = [folder for folder in search_path.split(os.pathsep) if folder]
    beside = [str(Path(folder).with_name("sbin")) for folder in folders if Path(folder).name == "bin"]
    return shutil.which("mosquitto", path=os.pathsep.join([*folders, *beside]))


class Mosquitto:
    """A running child. Made by `start`; ended by `stop`."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, port: int) -> None:
        self._process = process
        self._watch: asyncio.subprocess.Process | None = None
        self._folder = folder
        self.address = BrokerAddress(LOOPBACK, port, "mosquitto")

    @classmethod
    async def start(cls, program: str, folder: Path, port: int, tasks: asyncio.TaskGroup) -> Mosquitto:
        """Starts it and waits until it answers. `tasks` gets the task that reads its log.

        Raises StartError where it does not start (the port went to someone else meanwhile, say).
        """
        config = _write_config(folder, port)
        process = await asyncio.create_subprocess_exec(
            *_command(program, config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C on a terminal is for the daemon, which says goodbye through it
        )
        broker = cls(process, folder, port)
        try:
            (folder / PID_NAME).write_text(f"{process.pid}\n")
            broker._watch = await _start_watch(process.pid, config)
            log = tasks.create_task(broker._pass_on_log(), name="mosquitto-log")
            await broker._wait_until_it_answers(log)
        except BaseException:
            await broker.stop()
            raise
        return broker

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def _wait_until_it_answers(self, log: asyncio.Task[str]) -> None:
        deadline = asyncio.get_running_loop().time() + START_S
        while self.alive:
            if await who_listens(self.address.host, self.address.port) is Listener.BROKER and self.alive:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise StartError(f"mosquitto runs and does not answer on {self.address.host}:{self.address.port}")
            await asyncio.sleep(POLL_S)
        raise StartError(f"mosquitto ended with status {self._process.returncode} at its start: {await log}")

    async def _pass_on_log(self) -> str:
        """Reads its log until it ends; returns the last line."""
        assert self._process.stderr is not None
        last = ""
        count = 0
        while line := await _line(self._process.stderr):
            last = line.decode(errors="replace").strip()
            count += 1
            if count <= MAX_LOG_LINES:
                _log.warning("mosquitto_says", text=last[:500])
        return last

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after STOP_S; leaves no file behind. Harmless when it has ended already."""
        if self._watch is not None:
            with suppress(ProcessLookupError):
                self._watch.kill()
            await self._watch.wait()
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            _log.warning("mosquitto_killed", pid=self._process.pid, after_s=STOP_S)
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        _remove_files(self._folder)


async def _start_watch(pid: int, config: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", WATCH, "exod-broker-watch", str(OUTLIVES_S), str(pid), str(config)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # launchd ends what is left of a dead job's process group
    )


def sweep(folder: Path) -> int | None:
    """Ends the mosquitto that an earlier life of this daemon left, if one still runs; returns its pid.

    Blocks for up to 2 × STOP_S: call it in a thread. Never touches a process that does not run with our
    configuration file, whatever the pid file says.
    """
    config = (folder / CONFIG_NAME).resolve()
    try:
        process = psutil.Process(int((folder / PID_NAME).read_text()))
        is_ours = process.cmdline()[1:] == _command("mosquitto", config)[1:]
    except (OSError, ValueError, psutil.Error):
        _remove_files(folder)
        return None
    if is_ours:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(psutil.Error):
                process.send_signal(sign)
                process.wait(STOP_S)
                break
    _remove_files(folder)
    return process.pid if is_ours else None


def _write_config(folder: Path, port: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = (folder / CONFIG_NAME).resolve()
    config.write_text(CONFIG.format(port=port, host=LOOPBACK))
    return config


def _command(program: str, config: Path) -> list[str]:
    return [program, "-c", str(config)]


def _remove_files(folder: Path) -> None:
    for name in (PID_NAME, CONFIG_NAME):
        with suppress(OSError):
            (folder / name).unlink()
    with suppress(OSError):
        folder.rmdir()


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line, empty at the end; a line that is too long for the buffer is skipped."""
    while True:
        try:
            return await stream.readline()
        except ValueError:
            continue
