"""Deadlines for code of a model's folder: its chat template is a program, its tokenizer a list of patterns.

Decides only when either has taken too long; nothing of what they do is judged. Times are in seconds. Raises
TooSlowError.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final, TypeVar

TEMPLATE_S: Final = 10.0
"""A template of 200 lines takes 0.1 s for a conversation of 10,000 turns. One that loops takes for ever."""

ENCODE_S: Final = 60.0
"""A million tokens of plain text take 2 s, a million digits without a break 15 s with some tokenizers."""

MAX_ABANDONED: Final = 2
"""Threads that go on with a text which was given up. They end by themselves, or never."""

Value = TypeVar("Value")


class TooSlowError(Exception):
    """It was given up; `str(error)` says what took how long."""


class StillBusyError(TooSlowError):
    """It was not begun, because of earlier ones: nothing is known against it."""


class _PassedError(BaseException):
    """No Exception: a template's own handlers must not swallow it."""


@contextlib.contextmanager
def interrupted_after(seconds: float, what: str) -> Iterator[None]:
    """Ends Python code in the midst of whatever it does. On the main thread alone, where signals are heard; on
    another one this is no deadline. Raises TooSlowError.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def passed(_number: int, _frame: FrameType | None) -> None:
        raise _PassedError

    before = signal.signal(signal.SIGALRM, passed)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again and again: a handler somewhere may swallow it once
    try:
        yield
    except _PassedError:
        raise TooSlowError(f"{what} took more than {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Abandoning:
    """Runs code that no signal reaches in threads. One that takes too long is ended where it runs Python, such as a
    template that loops, and left alone where it runs native code.
    """

    def __init__(self) -> None:
        self._abandoned: list[threading.Thread] = []

    def run(self, work: Callable[[], Value], seconds: float, what: str) -> Value:
        """The result of `work`, which may raise. Raises TooSlowError, or StillBusyError where it was not begun."""
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        if len(self._abandoned) >= MAX_ABANDONED:
            raise StillBusyError(f"{what}: earlier texts are still being worked at; ask again")
        results: list[Value] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name=what, daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            _interrupt(thread)
            self._abandoned.append(thread)
            raise TooSlowError(f"{what} took more than {seconds:g} s")
        if errors:
            raise errors[0]
        return results[0]


def _interrupt(thread: threading.Thread) -> None:
    """Raises _PassedError in `thread` as soon as it runs Python. A loop that nobody ends would take half of the
    interpreter's time from the steps.
    """
    if thread.ident is not None:
        set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
        set_exception(ctypes.c_ulong(thread.ident), ctypes.py_object(_PassedError))
