"""The log of a service: a file that is rotated by size, and standard error kept for crashes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from exod import log
from exod.log import RotatingFile, trim_standard_error
from exod.model import NodeCard, NodeId
from exod.plain_text import printable
from exod.platform.crash_parser import last_words
from exoengine.process.control_thread import trim_log


def test_the_newest_files_stay_and_none_is_larger_than_allowed(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "logs" / "exod.log", max_bytes=100, keep=2)
    for number in range(40):
        file.write(f"line {number:04d}\n")
    file.flush()
    files = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert files == ["exod.log", "exod.log.1", "exod.log.2"]
    assert all((tmp_path / "logs" / name).stat().st_size <= 100 for name in files)
    newest = "".join((tmp_path / "logs" / name).read_text() for name in reversed(files))
    assert newest.splitlines() == [f"line {number:04d}" for number in range(40 - len(newest.splitlines()), 40)]


def test_figures_are_rounded_and_all_else_is_left(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "import structlog; from exod import log; log.configure('info', 'json');"
         "structlog.get_logger().info('x', agree_ms=1077.9039800036117, count=3, gap=float('inf'), at=None)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    line = json.loads(ran.stderr)
    assert (line["agree_ms"], line["count"], line["gap"], line["at"]) == (1077.904, 3, float("inf"), None)


def test_a_log_goes_on_where_the_last_start_ended(tmp_path: Path) -> None:
    for word in ("first\n", "second\n"):
        file = RotatingFile(tmp_path / "exod.log", max_bytes=12, keep=1)
        file.write(word)
        file.flush()
    assert (tmp_path / "exod.log.1").read_text() + (tmp_path / "exod.log").read_text() == "first\nsecond\n"


def test_a_line_longer_than_a_file_is_written_whole(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "exod.log", max_bytes=10, keep=1)
    file.write("x" * 50)
    file.flush()
    assert (tmp_path / "exod.log").read_text() == "x" * 50


def test_where_the_file_cannot_be_written_lines_go_to_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("no folder")
    file = RotatingFile(tmp_path / "logs" / "exod.log", max_bytes=100, keep=1)
    file.write("something\n")
    assert capsys.readouterr().err == "something\n"


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    (tmp_path / "exod.log").symlink_to(victim)
    file = RotatingFile(tmp_path / "exod.log", max_bytes=100, keep=1)
    file.write("something\n")
    assert victim.read_text() == "mine\n"
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
    told = json.loads(second)
    assert (told["event"], told["library"], told["text"]) == ("library_says", "zeroconf", "late")
    assert "RuntimeError: crash" in done.stderr
    assert "link_selected" not in done.stderr


LOGS_AND_ENDS = """
import structlog
from exod import log
from exod.platform.standard_streams import drop_unwritten, fill_closed
fill_closed()
log.configure("info", "json")
structlog.get_logger().info("link_selected")
structlog.get_logger().info("link_lost")
drop_unwritten()
"""


@pytest.mark.parametrize("redirections", ["2>&-", "<&- >&- 2>&-", "2>/dev/full", "2>&1 | true"])
def test_a_log_that_takes_nothing_ends_nobody(tmp_path: Path, redirections: str) -> None:
    """A full disk, a reader that is gone: the daemon goes on, and its exit code stays its own."""
    if "/dev/full" in redirections and not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")
    streams, piped, reader = redirections.partition("|")
    script = f'("$@" {streams}; echo $? >{tmp_path}/code) {piped} {reader}'
    argv = ["sh", "-c", script, "sh", sys.executable, "-c", LOGS_AND_ENDS]
    subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert (tmp_path / "code").read_text() == "0\n"


@pytest.fixture
def log_lines(tmp_path: Path) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Yields what reads the log that is written meanwhile."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    log.configure("info", "json", tmp_path / "exod.log", 10_000_000, 2)
    try:
        yield lambda: [json.loads(line) for line in (tmp_path / "exod.log").read_text().splitlines()]
    finally:
        structlog.reset_defaults()
        root.handlers, root.level = handlers, level


def test_a_flood_is_a_few_lines_and_then_one_a_minute_with_its_count() -> None:
    now = 0.0
    floods = log.EventLimit(lambda: now)
    written = []
    for _ in range(3):
        for _ in range(1000):
            with contextlib.suppress(structlog.DropEvent):
                written.append(floods(None, "warning", {"event": "spoofed"}))
        now += log.FLOOD_S
    assert [line.get("left_out") for line in written] == [None] * log.BURST + [1000 - log.BURST, 999]
    now += log.FLOOD_S
    assert floods(None, "warning", {"event": "spoofed"})["left_out"] == 999
    now += log.FLOOD_S
    assert "left_out" not in floods(None, "warning", {"event": "spoofed"})
    assert "left_out" not in floods(None, "warning", {"event": "something else"})


def test_what_a_library_logs_is_an_event_without_its_escapes(
    log_lines: Callable[[], list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("mqtt").error("name \x1b]0;x\x07 %s", "y")
    for _ in range(1000):
        logging.getLogger("mqtt").warning("Message queue is full. Discarding message.")
    lines = log_lines()
    assert [line["text"] for line in lines[:2]] == ["Invalid HTTP request received.", "name \ufffd]0;x\ufffd y"]
    assert {line["event"] for line in lines} == {"library_says"}
    assert len(lines) == 2 + log.BURST
    assert capsys.readouterr().err == ""


def test_a_terminal_is_shown_no_escapes_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    try:
        log.configure("info", "console")
        structlog.get_logger().warning("peer", name="a\x1b]0;owned\x07b", other="\u202egnp.exe\x9b31m")
    finally:
        structlog.reset_defaults()
        root.handlers, root.level = handlers, level
    said = capsys.readouterr().err
    assert "\x1b]" not in said
    assert "\x07" not in said
    assert "\u202e" not in said
    assert "\x9b" not in said


@pytest.mark.parametrize("text", ["studio1", "Büro 2", "工作室", "😀"])
def test_text_that_can_be_seen_is_kept(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("text", ["a\x1b[31m", "a\x00", "a\u202eb", "a\x9b1m", "a\nb", "\ud800", "a\u2066b"])
def test_text_that_would_do_something_is_replaced(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text) != text


def test_a_peers_name_is_cleaned_when_it_is_decoded() -> None:
    card = NodeCard(NodeId("1" * 16), "x\x1b]0;y\x07" + "z" * 5000, 1, "0\x9b", 1, 1, 1, (), True, 1, "m\n")
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(card), type=NodeCard)
    for text in (decoded.name, decoded.version, decoded.model):
        assert text.isprintable()
        assert len(text) <= 1024


def test_a_workers_log_is_cut_while_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "worker.log"
    with file.open("ab") as stream:
        stream.write(b"x" * 1000)
        stream.flush()
        trim_log(stream.fileno(), 1000)
        assert file.stat().st_size == 1000
        trim_log(stream.fileno(), 999)
        stream.write(b"after")
        stream.flush()
    assert file.read_bytes() == b"after"


def test_the_last_words_of_a_long_word_are_found_at_once() -> None:
    begun = time.process_time()
    assert last_words("x" * 16_384) == "x" * 400
    assert last_words("x" * 16_000 + "\nValueError: no\nmore") == "ValueError: no"
    assert time.process_time() - begun < 0.2, "searching from each letter anew took 1.75 s"
