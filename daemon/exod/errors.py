"""Errors that end at a person. Each says what happened, to what, and what to do; never a traceback."""

from __future__ import annotations

from enum import IntEnum

from exod.plain_text import printable


class ExitCode(IntEnum):
    """The exit codes of the contract."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    NO_DAEMON = 3
    DEGRADED = 4
    NO_PATH = 5
    TIMED_OUT = 6


class ExodError(Exception):
    """One clear line for a person, with the exit code that it means for a command."""

    exit_code = ExitCode.INTERNAL


class ConfigError(ExodError):
    """Names the file, the key, what was found, and what is allowed."""

    exit_code = ExitCode.USAGE


class StartError(ExodError):
    """The daemon cannot start: a port in use, no permission for the data folder, a second daemon on it."""

    exit_code = ExitCode.INTERNAL


class TrustError(ExodError):
    """Something is wrong with the cluster key or with what a peer presented."""

    exit_code = ExitCode.USAGE


class RequestError(ExodError):
    """What was asked for cannot be done; `code` is stable. Carried over the control socket and HTTP. Texts repeat
    what somebody sent: each is one line, and holds nothing that a terminal obeys.

    `retry_after_s`: when it is worth asking again; None where that is not known.
    """

    exit_code = ExitCode.USAGE

    def __init__(
        self, code: str, text: str, exit_code: ExitCode = ExitCode.USAGE, retry_after_s: float | None = None
    ) -> None:
        self.text = printable(text)
        super().__init__(self.text)
        self.retry_after_s = retry_after_s
        self.code = code
        self.exit_code = exit_code
