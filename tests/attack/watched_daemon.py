"""`python -m tests.attack.watched_daemon FILE run ...`: the daemon, with a watch on how long its loop is held.

How late a timer fires says more about the machine than about the daemon where others want its processors. What the
threads of this process waited for a processor (Linux: the second number of proc(5) schedstat) is subtracted: left
is what this process did itself, be it computing in the loop, holding the interpreter lock in another thread, or a
blocking call. Each stall of more than `TOLD_S` becomes a line of JSON in FILE, with the stack of the loop's thread
while it lasted. Times are in seconds in here and in milliseconds in the file.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import exod.__main__
import exod.app

TICK_S: Final = 0.005
TOLD_S: Final = 0.020
"""Less than half of what is allowed: what comes near to the bound is seen before it is beyond it."""

NANOSECONDS: Final = 1e9


class Threads:
    """How long each thread of this process computed and waited for a processor so far."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._listed = 0.0

    def now(self) -> dict[str, tuple[float, float]]:
        if time.monotonic() - self._listed > 1.0:
            self._list()
        return dict(self._each())

    def _each(self) -> Iterator[tuple[str, tuple[float, float]]]:
        for thread, file in list(self._files.items()):
            try:
                computed, waited, _ = os.pread(file, 100, 0).split()
            except (OSError, ValueError):  # the thread has ended
                os.close(self._files.pop(thread))
            else:
                yield thread, (int(computed) / NANOSECONDS, int(waited) / NANOSECONDS)

    def _list(self) -> None:
        self._listed = time.monotonic()
        for thread in os.listdir("/proc/self/task"):
            if thread not in self._files:
                self._files[thread] = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY)


Figures = dict[str, tuple[float, float]]


def held(late: float, loop: str, before: Figures, after: Figures) -> dict[str, float]:
    """How much of `late` is the process's own: what the loop's thread computed, and of the time in which it neither
    computed nor waited for a processor what other threads of the process computed, or what they cannot have waited.
    """
    computed, waited = (after[loop][one] - before[loop][one] for one in (0, 1))
    others = [
        (after[name][0] - before[name][0], after[name][1] - before[name][1])
        for name in after
        if name in before and name != loop
    ]
    others_computed, others_waited = (sum(one[index] for one in others) for index in (0, 1))
    blocked = max(0.0, late + TICK_S - computed - waited)
    own = computed + max(blocked - others_waited, min(blocked, others_computed)) - TICK_S
    return {
        "own": min(own, late),
        "late": late,
        "computed": computed,
        "waited": waited,
        "blocked": blocked,
        "others_computed": others_computed,
        "others_waited": others_waited,
    }


class Watch:
    """Ticks in the loop, and looks at the loop's thread from another one where a tick is late."""

    def __init__(self, output: IO[str]) -> None:
        self._output = output
        self._threads = Threads()
        self._thread, self._name = threading.get_ident(), str(threading.get_native_id())
        self._loop = asyncio.get_running_loop()
        self._stack: list[str] = []
        self._collecting = self._collected = 0.0
        gc.callbacks.append(self._garbage)
        self._before, self._at = self._threads.now(), time.monotonic()
        threading.Thread(target=self._look, daemon=True, name="loop watch").start()
        self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        late, now = time.monotonic() - self._at - TICK_S, self._threads.now()
        figures = held(late, self._name, self._before, now)
        if figures["own"] > TOLD_S:
            figures["garbage"] = self._collected
            line = {"at": time.monotonic()} | {name: round(1000 * figure, 1) for name, figure in figures.items()}
            self._output.write(json.dumps({**line, "stack": self._stack}) + "\n")
            self._output.flush()
        self._stack, self._collected = [], 0.0
        self._before, self._at = self._threads.now(), time.monotonic()
        self._loop.call_later(TICK_S, self._tick)

    def _garbage(self, phase: str, _: object) -> None:
        """Of any thread: the collector holds the interpreter lock."""
        if phase == "start":
            self._collecting = time.monotonic()
        else:
            self._collected += time.monotonic() - self._collecting

    def _look(self) -> None:
        while True:
            time.sleep(TICK_S)
            if time.monotonic() - self._at > TOLD_S:
                frame = sys._current_frames().get(self._thread)
                stack = [f"{one.filename}:{one.lineno} {one.name}" for one in traceback.extract_stack(frame)]
                self._stack = [*self._stack[-9:], " < ".join(reversed(stack[-12:]))]


def main() -> int:
    with Path(sys.argv[1]).open("w") as output:
        plain = exod.app.Daemon.run

        async def watched(daemon: Any) -> None:
            Watch(output)
            await plain(daemon)

        exod.app.Daemon.run = watched  # type: ignore[method-assign, assignment]
        return exod.__main__.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
