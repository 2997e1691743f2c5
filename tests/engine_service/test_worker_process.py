"""A worker process's life as its daemon leads it: started, adopted, left, killed, and never somebody else's."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import pytest

from exod.engine_service import worker_process
from exod.engine_service.worker_process import COMMAND, LOG_FILE, RECORD_FILE, Record, WorkerProcess
from exoengine.protocol import Cancel, FromWorker, Hello, Left

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_worker.py")))
PATIENCE_S = 30.0

pytestmark = pytest.mark.anyio


async def until(condition: Callable[[], object], text: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"never: {text}")


@dataclass
class Daemon:
    """What one daemon's life sees of the worker."""

    folder: Path
    tasks: asyncio.TaskGroup
    command: tuple[str, ...] = STAND_IN
    heard: list[FromWorker] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.worker = WorkerProcess(self.folder, {}, self.heard.append, self.ended.append, self.command)
        self.exits: list[tuple[int, int, str]] = []
        self.worker.on_exit = lambda *told: self.exits.append(told)

    async def start(self) -> int:
        """The pid that greeted."""
        self.heard.clear()
        self.ended.clear()
        self.worker.start(self.tasks)
        await until(lambda: self.heard or self.ended, "the worker greets")
        assert isinstance(self.heard[0], Hello), self.ended
        return self.heard[0].pid

    def wish(self, text: str) -> None:
        self.worker.tell(Cancel(text))

    def die(self) -> None:
        """As SIGKILL ends a daemon: its connection is closed, nothing else happens."""
        assert self.worker._life is not None
        self.worker._life.cancel()


@asynccontextmanager
async def a_daemon(folder: Path, command: tuple[str, ...] = STAND_IN) -> AsyncIterator[Daemon]:
    async with asyncio.TaskGroup() as tasks:
        daemon = Daemon(folder, tasks, command)
        try:
            yield daemon
        finally:
            for process in psutil.process_iter(["cmdline"]):
                if str(folder) in " ".join(process.info["cmdline"] or []):
                    process.kill()


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_worker_starts_greets_and_leaves(tmp_path: Path) -> None:
    async with a_daemon(tmp_path) as daemon:
        pid = await daemon.start()
        assert daemon.worker.pid == pid
        await daemon.worker.leave()
        assert daemon.ended == ["it ended"]
        assert isinstance(daemon.heard[-1], Left)
        assert not is_alive(pid)
        assert os.listdir(tmp_path) == [LOG_FILE]


async def test_a_crash_is_told_with_its_exit_code_and_where_to_read(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).write_text("")
    async with a_daemon(tmp_path) as daemon:
        pid = await daemon.start()
        daemon.wish("crash")
        await until(lambda: daemon.ended, "the end is told")
        assert daemon.ended == [
            f"it ended with exit code 3: the worker's last words; {LOG_FILE} in the data folder has more"
        ]
        assert (tmp_path / LOG_FILE).read_text() == "the worker's last words\n"
        assert daemon.exits == [(pid, 3, "the worker's last words\n")]
        await daemon.start()
        daemon.worker.kill("it hangs")
        await until(lambda: daemon.ended, "the end is told")
        assert daemon.exits[1][1:] == (-9, ""), "what an earlier worker wrote is not this one's last word"


async def test_a_killed_worker_is_told_by_its_signal_and_another_can_be_started(tmp_path: Path) -> None:
    async with a_daemon(tmp_path) as daemon:
        first = await daemon.start()
        daemon.worker.kill("it hangs")
        await until(lambda: daemon.ended, "the end is told")
        assert daemon.ended == ["it was killed by SIGKILL"]
        assert await daemon.start() != first


async def test_a_stopped_worker_is_killed_too(tmp_path: Path) -> None:
    async with a_daemon(tmp_path) as daemon:
        pid = await daemon.start()
        os.kill(pid, signal.SIGSTOP)
        daemon.worker.kill("it says nothing")
        await until(lambda: daemon.ended, "the end is told")
        assert not is_alive(pid)


async def test_a_stopped_worker_is_continued(tmp_path: Path) -> None:
    async with a_daemon(tmp_path) as daemon:
        pid = await daemon.start()
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "it is stopped")
        daemon.worker.wake()
        await until(lambda: psutil.Process(pid).status() != psutil.STATUS_STOPPED, "it goes on")
        await daemon.worker.leave()
        assert daemon.ended == ["it ended"]


async def test_a_worker_that_does_not_leave_is_asked_harder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "GRACE_S", 0.3)
    async with a_daemon(tmp_path) as daemon:
        pid = await daemon.start()
        daemon.wish("mute")
        await daemon.worker.leave(deadline_s=0.1)
        await until(lambda: daemon.ended, "the end is told")
        assert daemon.ended == ["it was killed by SIGKILL"]
        assert not is_alive(pid)


@pytest.mark.parametrize("wish", ["close", "garbage"])
async def test_a_worker_that_cannot_be_spoken_with_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    monkeypatch.setattr(worker_process, "GRACE_S", 0.3)
    async with a_daemon(tmp_path) as daemon:
        pid = await daemon.start()
        daemon.wish(wish)
        await until(lambda: daemon.ended, "the end is told")
        assert not is_alive(pid)


async def test_a_program_that_is_missing_is_one_clear_line(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, ("/nowhere/python",)) as daemon:
        daemon.worker.start(daemon.tasks)
        await until(lambda: daemon.ended, "the end is told")
        assert daemon.ended == ["it could not be started: No such file or directory"]


async def test_a_program_that_ends_at_once_is_told(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, (sys.executable, "-c", "raise SystemExit(7)")) as daemon:
        daemon.worker.start(daemon.tasks)
        await until(lambda: daemon.ended, "the end is told")
        assert "exit code 7" in daemon.ended[0]


# --- what an earlier daemon left ----------------------------------------------------------------------------


@asynccontextmanager
async def an_orphan(folder: Path) -> AsyncIterator[int]:
    """A worker whose daemon was killed."""
    async with a_daemon(folder) as first:
        pid = await first.start()
        first.die()
        await asyncio.sleep(0)
        yield pid


async def test_the_next_daemon_adopts_the_worker(tmp_path: Path) -> None:
    async with an_orphan(tmp_path) as pid, a_daemon(tmp_path) as second:
        assert await second.start() == pid
        await second.worker.leave()
        assert second.ended == ["its connection was lost"]
        assert not is_alive(pid)


async def test_a_worker_without_a_record_is_found_and_adopted(tmp_path: Path) -> None:
    async with an_orphan(tmp_path) as pid, a_daemon(tmp_path) as second:
        (tmp_path / RECORD_FILE).unlink()
        assert await second.start() == pid


async def test_a_stopped_orphan_is_killed_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "ADOPT_DEADLINE_S", 0.3)
    monkeypatch.setattr(worker_process, "GRACE_S", 0.3)
    async with an_orphan(tmp_path) as pid, a_daemon(tmp_path) as second:
        os.kill(pid, signal.SIGSTOP)
        second.worker.start(second.tasks)
        await until(lambda: second.ended, "the mute one is given up")
        assert not is_alive(pid)
        assert await second.start() != pid


async def test_an_orphan_that_does_not_listen_is_ended_and_replaced(tmp_path: Path) -> None:
    async with an_orphan(tmp_path) as pid, a_daemon(tmp_path) as second:
        (tmp_path / "worker.sock").unlink()
        assert await second.start() != pid
        assert not is_alive(pid)


async def test_a_node_that_hosts_no_rank_sweeps_what_was_left(tmp_path: Path) -> None:
    async with an_orphan(tmp_path) as pid, a_daemon(tmp_path) as second:
        second.worker.sweep()
        await until(lambda: not is_alive(pid), "the orphan is gone")


async def test_a_daemon_that_leaves_before_it_adopted_leaves_no_worker(tmp_path: Path) -> None:
    async with an_orphan(tmp_path) as pid, a_daemon(tmp_path) as second:
        await second.worker.leave()
        await until(lambda: not is_alive(pid), "the orphan is gone")


async def test_a_record_that_names_a_foreign_process_touches_nobody(tmp_path: Path) -> None:
    code = "import time; time.sleep(600)"
    foreign = await asyncio.create_subprocess_exec(sys.executable, "-c", code, *STAND_IN, "--socket", "/elsewhere")
    try:
        async with a_daemon(tmp_path) as daemon:
            (tmp_path / RECORD_FILE).write_bytes(msgspec.json.encode(Record(foreign.pid)))
            daemon.worker.sweep()
            assert await daemon.start() != foreign.pid
            await daemon.worker.leave()
        assert foreign.returncode is None
    finally:
        foreign.kill()
        await foreign.wait()


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"pid": 1}', b'{"pid": 99999999}'])
async def test_a_broken_record_is_passed_over(tmp_path: Path, record: bytes) -> None:
    async with a_daemon(tmp_path) as daemon:
        (tmp_path / RECORD_FILE).write_bytes(record)
        await daemon.start()


async def test_workers_of_two_folders_leave_each_other_alone(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    async with a_daemon(one) as first, a_daemon(other) as second:
        pids = {await first.start(), await second.start()}
        assert len(pids) == 2
        second.worker.sweep()
        await until(lambda: second.ended, "its own is swept")
        assert not first.ended


async def test_a_folder_with_a_long_name_has_its_socket_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    async with a_daemon(folder) as daemon:
        await daemon.start()
        path = daemon.worker._socket_path()
        assert len(path) <= worker_process.MAX_SOCKET_PATH_BYTES
        assert Path(path).parent.stat().st_mode & 0o077 == 0
        await daemon.worker.leave()


async def test_the_real_worker_greets_and_leaves(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, COMMAND) as daemon:
        pid = await daemon.start()
        hello = daemon.heard[0]
        assert isinstance(hello, Hello)
        assert hello.load is None
        await daemon.worker.leave()
        assert daemon.ended == ["it ended"]
        assert not is_alive(pid)


async def test_the_worker_runs_no_code_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded = tmp_path / "downloaded"
    downloaded.mkdir()
    (downloaded / "msgspec.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(3)\n")
    monkeypatch.chdir(downloaded)
    async with a_daemon(tmp_path, COMMAND) as daemon:
        await daemon.start()
        assert isinstance(daemon.heard[0], Hello)
        assert not (tmp_path / "ran").exists()
        await daemon.worker.leave()


async def test_a_bug_in_what_hears_the_worker_costs_the_process_and_not_the_daemon(tmp_path: Path) -> None:
    def breaks(message: FromWorker) -> None:
        raise KeyError("a bug")

    async with a_daemon(tmp_path) as daemon:
        daemon.worker._on_message = breaks
        daemon.worker.start(daemon.tasks)
        await until(lambda: daemon.ended, "the worker's end is told")
        assert daemon.ended == ["an internal error of exod (KeyError); the daemon's log has the details"]
        await until(lambda: daemon.worker.pid is None, "nothing is left")


async def test_a_worker_that_is_to_be_killed_may_free_its_memory_first(tmp_path: Path) -> None:
    async with a_daemon(tmp_path) as daemon:
        daemon.worker.free_within_s = PATIENCE_S
        await daemon.start()
        daemon.worker.kill("its GPU hangs")
        await until(lambda: daemon.exits, "it ends")
        assert daemon.exits[0][1] == -signal.SIGTERM


async def test_a_worker_that_does_not_take_that_chance_is_killed(tmp_path: Path) -> None:
    async with a_daemon(tmp_path) as daemon:
        daemon.worker.free_within_s = 0.2
        await daemon.start()
        daemon.wish("mute")
        await asyncio.sleep(0.2)
        daemon.worker.kill("its GPU hangs")
        await until(lambda: daemon.exits, "it ends")
        assert daemon.exits[0][1] == -signal.SIGKILL


async def test_a_worker_that_lingers_may_free_its_memory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "GRACE_S", 0.3)
    async with a_daemon(tmp_path) as daemon:
        daemon.worker.free_within_s = PATIENCE_S
        await daemon.start()
        daemon.wish("close")
        await until(lambda: daemon.exits, "it ends")
        assert daemon.exits[0][1] == -signal.SIGTERM


async def test_a_worker_that_was_adopted_and_lingers_may_free_its_memory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[signal.Signals] = []
    send = worker_process._signal

    def noted(process: psutil.Process, number: signal.Signals) -> None:
        signals.append(number)
        send(process, number)

    monkeypatch.setattr(worker_process, "_signal", noted)
    monkeypatch.setattr(worker_process, "GRACE_S", 0.3)
    async with a_daemon(tmp_path) as daemon:
        await daemon.start()
        daemon.die()
        successor = Daemon(tmp_path, daemon.tasks)
        successor.worker.free_within_s = PATIENCE_S
        await successor.start()
        successor.wish("close")
        await until(lambda: successor.ended, "its end is told")
        assert signals[0] == signal.SIGTERM


async def test_a_worker_that_is_swept_may_free_its_memory_first(tmp_path: Path) -> None:
    async with a_daemon(tmp_path) as daemon:
        pid = await daemon.start()
        daemon.die()
        successor = Daemon(tmp_path, daemon.tasks)
        successor.worker.free_within_s = PATIENCE_S
        await asyncio.to_thread(successor.worker.sweep)
        await until(
            lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "it ends"
        )


async def test_a_full_disk_keeps_no_rank_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The note of its pid, which only the next daemon needs, cannot be written."""

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    async with a_daemon(tmp_path) as daemon:
        pid = await daemon.start()
        assert psutil.pid_exists(pid)
        await daemon.worker.leave(deadline_s=5.0)
