"""Which signals end the daemon in order, and from when on."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

EARLY = """
import os, sys, time
from exod.platform.stop_signals import end_before_the_start
end_before_the_start()
os.kill(os.getpid(), int(sys.argv[1]))
time.sleep(60)
"""

RUNNING = """
import asyncio, os, signal, sys
from exod.platform import stop_signals
if sys.argv[2] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
stop_signals.end_before_the_start()
async def main():
    stop = asyncio.Event()
    stop_signals.ask(asyncio.get_running_loop(), stop.set)
    os.kill(os.getpid(), int(sys.argv[1]))
    try:
        async with asyncio.timeout(30 if sys.argv[2] == "" else 0.2):
            await stop.wait()
    except TimeoutError:
        sys.exit(3)
asyncio.run(main())
"""


def exit_code(code: str, number: int, how: str = "") -> int:
    argv = [sys.executable, "-c", code, str(number), how]
    return subprocess.run(argv, check=False, timeout=60).returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_start_ends_with_0(number: int) -> None:
    assert exit_code(EARLY, number) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_each_of_them_is_an_orderly_end(number: int) -> None:
    assert exit_code(RUNNING, number) == 0


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    assert exit_code(RUNNING, signal.SIGHUP, "nohup") == 3
