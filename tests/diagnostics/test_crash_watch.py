"""Which reports in which folders are ours, told once, whatever else lies there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exod.diagnostics.crash_watch import MAX_AGE_S, MAX_BYTES, SETTLES_IN_S, CrashReports, CrashWatch, from_exit
from exod.diagnostics.event_log import EventLog
from exod.model import NodeId
from tests.platform.test_crash_parser import CRASH, HEADER, TIMEOUT, ips

NOW = 1_773_412_200.0
STRANGER = {"coalitionName": "com.apple.Terminal", "pid": 1, "parentPid": 2, "usedImages": []}


def write(folder: Path, name: str, text: str, *, age_s: float = 5.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(text)
    os.utime(file, (NOW - age_s, NOW - age_s))
    return file


def reports(*folders: Path, pids: set[int] | None = None, told: tuple[str, ...] = ()) -> CrashReports:
    return CrashReports(folders, pids or set(), told, prefix=Path("/Users/me/venv"))


def test_a_report_of_ours_is_told_once_even_when_it_is_retired(tmp_path: Path) -> None:
    user, retired = tmp_path / "reports", tmp_path / "reports" / "Retired"
    file = write(user, "Python-2026-03-13-072840.ips", ips())
    watched = reports(user, retired)
    (crash,) = watched.look(NOW)
    assert crash.text == f"Python (pid 12556) crashed with EXC_CRASH (SIGABRT): {TIMEOUT}"
    assert crash.gpu_watchdog
    assert 'engine.sync = "safe"' in crash.cure
    assert (crash.file, crash.incident) == (str(file), HEADER["incident_id"])
    assert watched.look(NOW + 15) == []
    retired.mkdir()
    file.rename(retired / file.name)
    assert watched.look(NOW + 30) == []
    assert reports(user, retired, told=(HEADER["incident_id"],)).look(NOW) == [], "an earlier life told it"
    assert (retired / file.name).exists(), "nothing is removed"


@pytest.mark.parametrize(
    ("changes", "pids", "ours"),
    [
        ({}, set(), True),
        (STRANGER, set(), False),
        (STRANGER | {"coalitionName": "com.exod.daemon"}, set(), True),
        (STRANGER, {1}, True),
        (STRANGER, {2}, True),
        (STRANGER | {"usedImages": [{"path": "/Users/me/venv/lib/libmlx.dylib"}]}, set(), True),
        (STRANGER | {"usedImages": [{"path": "/Users/me/venv2/lib/libmlx.dylib"}]}, set(), False),
        (STRANGER | {"pid": None, "parentPid": None}, set(), False),
    ],
)
def test_ours_are_known_by_job_pid_or_environment(
    tmp_path: Path, changes: dict[str, object], pids: set[int], ours: bool
) -> None:
    write(tmp_path, "a.ips", ips(**changes))
    assert len(reports(tmp_path, pids=pids).look(NOW)) == ours


def test_a_half_written_report_is_read_when_it_is_whole(tmp_path: Path) -> None:
    write(tmp_path, "a.ips", ips()[:700])
    watched = reports(tmp_path)
    with capture_logs() as logs:
        assert watched.look(NOW) == []
    assert logs == []
    write(tmp_path, "a.ips", ips())
    assert len(watched.look(NOW + 15)) == 1


def test_a_damaged_report_is_one_line_in_the_log_and_hides_no_other(tmp_path: Path) -> None:
    bad = write(tmp_path, "a.ips", "rubbish", age_s=SETTLES_IN_S + 1)
    write(tmp_path, "b.crash", CRASH)
    (tmp_path / "c.ips").mkdir()
    os.utime(tmp_path / "c.ips", (NOW - 90, NOW - 90))
    watched = reports(tmp_path)
    with capture_logs() as logs:
        (crash,) = watched.look(NOW)
        assert watched.look(NOW + 15) == []
    assert crash.frames[0] == "libsystem_kernel.dylib __pthread_kill"
    errors = {entry["file"]: entry["error"] for entry in logs}
    assert set(errors) == {str(bad), str(tmp_path / "c.ips")}
    assert "not a whole .ips report" in errors[str(bad)]
    assert len(logs) == 2


def test_old_large_and_other_files_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, "old.ips", ips(), age_s=MAX_AGE_S + 1)
    write(tmp_path, "large.ips", ips() + " " * MAX_BYTES)
    write(tmp_path, "kernel.panic", ips())
    write(tmp_path, "hang.ips", ips({"bug_type": "298"}))
    assert reports(tmp_path, tmp_path / "nowhere").look(NOW) == []


def test_only_what_a_process_does_to_itself_is_a_crash() -> None:
    crash = from_exit(812, -signal.SIGABRT, f"{TIMEOUT}\n", NOW)
    assert crash is not None
    assert crash.text == f"worker (pid 812) crashed with SIGABRT: {TIMEOUT}"
    assert crash.gpu_watchdog
    for code in (0, 3, -signal.SIGKILL, -signal.SIGTERM):
        assert from_exit(812, code, "", NOW) is None


def test_a_workers_crash_is_an_event_at_once_and_an_orderly_end_is_none(tmp_path: Path) -> None:
    told: list[None] = []
    events = EventLog(tmp_path)
    watch = CrashWatch(NodeId("00000000000000aa"), (), events, lambda: told.append(None))
    watch.worker_exited(7, 0, "")
    assert (list(events.recent("crash.seen", since=0.0)), told) == ([], [])
    watch.worker_exited(8, -signal.SIGABRT, "")
    (event,) = events.recent("crash.seen", since=0.0)
    assert (event.data["pid"], event.data["exception"], told) == (8, "SIGABRT", [None])
