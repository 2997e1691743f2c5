"""macOS's crash reports: what is read of whole ones, of damaged ones, and of a process's last words."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exod.platform.crash_parser import MAX_TEXT, CrashTextError, last_words, parse_crash, parse_ips

TIMEOUT = (
    "libc++abi: terminating due to uncaught exception of type std::runtime_error: [METAL] Command buffer execution "
    "failed: Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)"
)

HEADER: dict[str, Any] = {
    "app_name": "Python",
    "timestamp": "2026-03-13 07:28:40.00 -0700",
    "app_version": "",
    "slice_uuid": "82a0f60a-edf8-4094-31f3-db131e28b491",
    "platform": 1,
    "share_with_app_devs": 0,
    "is_first_party": 0,
    "bug_type": "309",
    "os_version": "macOS 26.3.1 (25D2128)",
    "incident_id": "6F0A2D41-3B9C-4E55-9D0E-1A2B3C4D5E6F",
    "name": "Python",
}

BODY: dict[str, Any] = {
    "uptime": 5600,
    "procRole": "Unspecified",
    "version": 2,
    "userID": 501,
    "pid": 12556,
    "procName": "Python",
    "procPath": "/opt/homebrew/*/Python.framework/Versions/3.12/Resources/Python.app/Contents/MacOS/Python",
    "parentProc": "exod",
    "parentPid": 12001,
    "coalitionName": "com.exod.agent",
    "captureTime": "2026-03-13 07:28:38.4213 -0700",
    "procLaunch": "2026-03-13 05:47:56.0812 -0700",
    "exception": {"codes": "0x0000000000000000, 0x0000000000000000", "type": "EXC_CRASH", "signal": "SIGABRT"},
    "termination": {
        "flags": 0,
        "code": 6,
        "namespace": "SIGNAL",
        "indicator": "Abort trap: 6",
        "byProc": "Python",
        "byPid": 12556,
    },
    "asi": {"libsystem_c.dylib": ["abort() called"], "libc++abi.dylib": [TIMEOUT]},
    "faultingThread": 1,
    "threads": [
        {"id": 1, "frames": [{"imageOffset": 4, "symbol": "main", "symbolLocation": 8, "imageIndex": 2}]},
        {
            "triggered": True,
            "id": 2,
            "queue": "com.Metal.CompletionQueueDispatch",
            "frames": [
                {"imageOffset": 38320, "symbol": "__pthread_kill", "symbolLocation": 8, "imageIndex": 0},
                {"imageOffset": 26616, "symbol": "abort", "symbolLocation": 124, "imageIndex": 1},
                {"imageOffset": 112, "imageIndex": 2},
                {"imageOffset": 112, "symbol": "lost", "imageIndex": 99},
            ],
        },
    ],
    "usedImages": [
        {"source": "P", "arch": "arm64e", "base": 1, "path": "/usr/lib/system/libsystem_kernel.dylib",
         "name": "libsystem_kernel.dylib"},
        {"source": "P", "path": "/usr/lib/system/libsystem_c.dylib", "name": "libsystem_c.dylib"},
        {"source": "P", "path": "/Users/me/venv/lib/python3.12/site-packages/mlx/lib/libmlx.dylib",
         "name": "libmlx.dylib"},
    ],
}  # fmt: skip

CRASH = f"""\
Process:               Python [12556]
Path:                  /opt/homebrew/*/Python
Identifier:            org.python.python
Code Type:             ARM-64 (Native)
Parent Process:        exod [12001]
Coalition:             com.exod.agent [1234]
User ID:               501

Date/Time:             2026-03-13 07:28:38.4213 -0700
OS Version:            macOS 26.3.1 (25D2128)
Incident Identifier:   6F0A2D41-3B9C-4E55-9D0E-1A2B3C4D5E6F

Crashed Thread:        1  Dispatch queue: com.Metal.CompletionQueueDispatch

Exception Type:        EXC_CRASH (SIGABRT)
Exception Codes:       0x0000000000000000, 0x0000000000000000

Termination Reason:    Namespace SIGNAL, Code 6 Abort trap: 6
Terminating Process:   Python [12556]

Application Specific Information:
abort() called
{TIMEOUT}

Thread 0::  Dispatch queue: com.apple.main-thread
0   libmlx.dylib                  \t       0x1a2b3c4d5 main + 8

Thread 1 Crashed::  Dispatch queue: com.Metal.CompletionQueueDispatch
0   libsystem_kernel.dylib        \t       0x18c2f65b0 __pthread_kill + 8
1   libsystem_c.dylib             \t       0x18c23b7f8 abort + 124
2   libmlx.dylib                  \t       0x110a3c070 mlx::core::gpu::check_error(MTL::CommandBuffer*) + 96

Binary Images:
"""


def ips(header: dict[str, Any] | None = None, **changes: Any) -> str:
    return json.dumps(HEADER | (header or {})) + "\n" + json.dumps(BODY | changes, indent=2)


def test_an_ips_report_is_read_with_what_it_said_last_and_where() -> None:
    report = parse_ips(ips())
    assert report is not None
    assert (report.process, report.pid, report.parent_pid, report.coalition) == (
        "Python", 12556, 12001, "com.exod.agent",
    )  # fmt: skip
    assert report.exception == "EXC_CRASH (SIGABRT)"
    assert report.text == TIMEOUT
    assert report.gpu_watchdog
    assert report.at == 1773412118.0
    assert report.incident == HEADER["incident_id"]
    assert report.frames == (
        "libsystem_kernel.dylib __pthread_kill",
        "libsystem_c.dylib abort",
        "libmlx.dylib",
        "lost",
    )
    assert report.images[-1].endswith("/mlx/lib/libmlx.dylib")


def test_without_words_of_a_library_the_termination_says_why() -> None:
    report = parse_ips(ips(asi={"libsystem_c.dylib": ["abort() called"]}))
    assert report is not None
    assert (report.text, report.gpu_watchdog) == ("Abort trap: 6", False)
    bare = parse_ips(json.dumps(HEADER) + "\n{}")
    assert bare is not None
    assert (bare.text, bare.exception, bare.frames, bare.pid) == ("", "", (), None)


def test_other_reports_than_crashes_are_nothing() -> None:
    assert parse_ips(ips({"bug_type": "288"})) is None
    assert parse_ips('{"bug_type": 210}\nnot JSON at all') is None


@pytest.mark.parametrize(
    "text",
    ["", "\n", "no json", json.dumps(HEADER), ips()[:900], ips(pid="many"), ips(threads={}), ips(exception=None)],
)
def test_a_half_written_or_damaged_report_is_one_clear_line(text: str) -> None:
    with pytest.raises(CrashTextError, match=r"^not a whole \.ips report: [^\n]+$"):
        parse_ips(text)


def test_a_faulting_thread_that_is_not_there_leaves_the_frames_out() -> None:
    for at in (7, -1, None):
        report = parse_ips(ips(faultingThread=at))
        assert report is not None
        assert report.frames == ()


def test_a_report_of_an_older_release_is_read_alike() -> None:
    old, new = parse_crash(CRASH), parse_ips(ips())
    assert new is not None
    for name in ("incident", "process", "pid", "parent_pid", "coalition", "at", "exception", "text"):
        assert getattr(old, name) == getattr(new, name), name
    assert old.frames[:2] == new.frames[:2]
    assert old.frames[2] == "libmlx.dylib mlx::core::gpu::check_error(MTL::CommandBuffer*)"


@pytest.mark.parametrize("text", ["", "Process: nobody\n", CRASH.split("Exception Type")[0]])
def test_half_of_an_older_report_is_one_clear_line(text: str) -> None:
    with pytest.raises(CrashTextError, match=r"^not a whole \.crash report"):
        parse_crash(text)


@given(st.text(), st.integers(0, len(CRASH)), st.integers(0, 40))
def test_no_text_breaks_the_parsers(junk: str, at: int, length: int) -> None:
    for parse, text in ((parse_ips, ips()), (parse_crash, CRASH)):
        with contextlib.suppress(CrashTextError):  # whatever else is raised fails
            parse(text[:at] + junk + text[at + length :])


def test_last_words_prefer_what_says_why() -> None:
    assert last_words(
        f"loading\n{TIMEOUT}\nFatal Python error: Aborted\n\nThread 0x1 (most recent call first):\n"
    ) == (TIMEOUT)
    stacks = "Fatal Python error: Segmentation fault\n\nThread 0x7f (most recent call first):\n  File x, line 3\n"
    assert last_words(stacks) == "Fatal Python error: Segmentation fault"
    assert last_words("Traceback:\n  File x\nRuntimeError: [ring] lost\n") == "RuntimeError: [ring] lost"
    assert last_words("one\n two \n\n") == "two"
    assert last_words("") == ""
    assert len(last_words("x" * 9999)) == MAX_TEXT


@pytest.mark.parametrize(
    "text",
    [
        "Process: a [7]\nException Type: x\nApplication Specific Information" + ":" * 300_000,
        "Process: a [7]\nException Type: x\nThread 0 Crashed" + ": " * 200_000,
        "Process: a [7]\nException Type: x\n" + "A" * 500_000,
        "Process: a [7]\nException Type: x\nThread 0 Crashed:\n0  lib  0x1  " + " + 1" * 100_000 + "x\n",
    ],
    ids=["colons", "words", "no field", "a frame"],
)
def test_no_report_takes_long_to_read(text: str) -> None:
    """The interpreter's lock is held meanwhile, so a long search stops the daemon."""
    begun = time.process_time()
    parse_crash(text)
    assert time.process_time() - begun < 2.0


def test_a_process_number_that_no_system_has_is_no_report() -> None:
    with pytest.raises(CrashTextError):
        parse_crash(f"Process: a [{'9' * 5000}]\nException Type: x\n")
