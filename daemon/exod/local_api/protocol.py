"""What `exoctl` and the daemon say to each other over the control socket: one JSON object a line.

A request is `{"v":1,"id":7,"verb":"links","args":{"peer":"studio2"}}`. Its answers carry the same id: any number
of `{"v":1,"id":7,"item":…}` for a verb that streams, then exactly one last line with `"end":true`, which holds
`result` or `error` (`code`, `text`, `exit_code`) or neither. Requests on one connection are answered in order.
Closing the sending side ends a stream; a request that is not a stream is still answered.

Imported by `local_api/server.py` and by `cli/base/client.py`, which must start fast: nothing heavy here.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

LOCAL_API_VERSION: Final = 1
"""Rises when an old exoctl would misread a new daemon, or the other way round; new verbs and fields
do not count."""

MAX_LINE_BYTES: Final = 8 * 1024 * 1024
"""The longest request is a chat with its history: a context of 1,000,000 tokens in plain text is about 4 MiB."""


class LocalRequest(msgspec.Struct, frozen=True):
    verb: str
    v: int = LOCAL_API_VERSION
    id: int | str = 0
    args: msgspec.Raw = msgspec.Raw(b"{}")


class LocalError(msgspec.Struct, frozen=True):
    """`code` is stable, `text` is one line for people, `exit_code` is what a command ends with."""

    code: str
    text: str
    exit_code: int


class LocalReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of an answer. `end` marks the last one."""

    v: int
    id: int | str
    item: Any = None
    result: Any = None
    error: LocalError | None = None
    end: bool = False


class RawReply(msgspec.Struct, frozen=True):
    """A LocalReply as the client reads it: what is inside is decoded once the verb's type is known."""

    v: int = 0
    id: int | str = 0
    item: msgspec.Raw = msgspec.Raw(b"")
    result: msgspec.Raw = msgspec.Raw(b"")
    error: LocalError | None = None
    end: bool = False
