"""The three standard streams where they are not as usual: closed by who started the process, full, or without an
encoding for what is shown.

Decides that a closed one is the null device (else the next socket would get its number, and be written to), and
that an exit code does not change because of what could not be written. It never decides what is written.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Final

LAST_STANDARD: Final = 2
"""The descriptor of standard error."""


def fill_closed() -> None:
    """Opens the null device for each standard stream that is closed. Call it before anything else is opened."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= LAST_STANDARD:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    # Not closed when they are collected: a standard stream lives as long as the process.
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def replace_what_cannot_be_shown() -> None:
    """A name with letters that a terminal's encoding lacks is shown with question marks; it is no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def drop_unwritten() -> None:
    """What could not be written stays in a buffer, and Python would end with an exit code of its own for it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
