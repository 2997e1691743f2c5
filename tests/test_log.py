"""The log of a service: a file that is rotated by size, and standard error kept for crashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exod.log import RotatingFile, trim_standard_error


def test_the_newest_files_stay_and_none_is_larger_than_allowed(tmp_path: Path) -> None:
    log = RotatingFile(tmp_path / "logs" / "exod.log", max_bytes=100, keep=2)
    for number in range(40):
        log.write(f"line {number:04d}\n")
    log.flush()
    files = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert files == ["exod.log", "exod.log.1", "exod.log.2"]
    assert all((tmp_path / "logs" / name).stat().st_size <= 100 for name in files)
    newest = "".join((tmp_path / "logs" / name).read_text() for name in reversed(files))
    assert newest.splitlines() == [f"line {number:04d}" for number in range(40 - len(newest.splitlines()), 40)]


def test_a_log_goes_on_where_the_last_start_ended(tmp_path: Path) -> None:
    for word in ("first\n", "second\n"):
        log = RotatingFile(tmp_path / "exod.log", max_bytes=12, keep=1)
        log.write(word)
        log.flush()
    assert (tmp_path / "exod.log.1").read_text() + (tmp_path / "exod.log").read_text() == "first\nsecond\n"


def test_a_line_longer_than_a_file_is_written_whole(tmp_path: Path) -> None:
    log = RotatingFile(tmp_path / "exod.log", max_bytes=10, keep=1)
    log.write("x" * 50)
    log.flush()
    assert (tmp_path / "exod.log").read_text() == "x" * 50


def test_where_the_file_cannot_be_written_lines_go_to_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("no folder")
    log = RotatingFile(tmp_path / "logs" / "exod.log", max_bytes=100, keep=1)
    log.write("something\n")
    assert capsys.readouterr().err == "something\n"


def test_standard_error_is_emptied_only_where_it_is_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "exod.err.log"
    path.write_bytes(b"x" * 100)
    with path.open("ab") as stream:
        trim_standard_error(stream.fileno(), max_bytes=100)
        assert path.stat().st_size == 100
        trim_standard_error(stream.fileno(), max_bytes=99)
        stream.write(b"new")
    assert path.read_bytes() == b"new"
    read, write = os.pipe()
    trim_standard_error(write, max_bytes=0)
    os.close(read)
    os.close(write)


def test_a_service_logs_into_its_file_and_a_crash_goes_to_standard_error(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; import logging; import structlog; from exod import log; import sys;"
        "log.configure('info', 'auto', Path(sys.argv[1]), 10_000, 1);"
        "structlog.get_logger().info('link_selected', peer='studio2');"
        "logging.getLogger('zeroconf').warning('late'); logging.shutdown(); raise RuntimeError('crash')"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "exod.log")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    first, second = (tmp_path / "exod.log").read_text().splitlines()
    assert json.loads(first)["event"] == "link_selected"
    assert second == "WARNING zeroconf: late"
    assert "RuntimeError: crash" in done.stderr
    assert "link_selected" not in done.stderr
