"""Checks of single values of the configuration: each returns the value, or raises RejectedError that says what is
allowed.

A check decides by the value alone; what concerns more than one key is decided in config.py, which calls them.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from exod.model import Kind
from exoengine.model_files.memory_fit import amount_bytes


class RejectedError(Exception):
    """A value's check failed; the text says what is allowed."""


Check = Callable[[Any], Any]


def text(pattern: str, allowed: str) -> Check:
    expression = re.compile(pattern)

    def check(value: Any) -> str:
        if not isinstance(value, str) or not expression.fullmatch(value):
            raise RejectedError(allowed)
        return value

    return check


MAX_NAME_BYTES: Final = 63
"""A DNS label's length: a TXT string of multicast DNS holds 255 bytes with its key."""


BLANKS: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and symbols by their kind that have no picture: Hangul fillers, the empty Braille pattern."""


def _is_seen(value: str) -> bool:
    """Is there a letter, digit, mark or symbol in it, and not only what joins or stands between some?"""
    return any(unicodedata.category(one)[0] in "LNPS" and one not in BLANKS for one in value)


def name(value: Any) -> str:
    """Of a node or a cluster: it stands in topics, in multicast DNS and on terminals."""
    rejected = RejectedError(
        f"1 to {MAX_NAME_BYTES} characters that can be seen, {MAX_NAME_BYTES} bytes in UTF-8 at most, "
        "without / + # or a space at its ends"
    )
    if not isinstance(value, str) or not value.isprintable() or value != value.strip():
        raise rejected
    if (
        not _is_seen(value)
        or not 1 <= len(value.encode()) <= MAX_NAME_BYTES
        or any(character in "/+#" for character in value)
    ):
        raise rejected
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RejectedError("true or false")
    return value


def whole(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise RejectedError(f"a whole number from {low} to {high}")
        return value

    return check


def one_of(*numbers: int) -> Check:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value not in numbers:
            raise RejectedError("one of " + ", ".join(map(str, numbers)))
        return value

    return check


def number(low: float, high: float, unit: str) -> Check:
    def check(value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise RejectedError(f"a number from {low:g} to {high:g} ({unit})")
        return float(value)

    return check


def amount(value: Any) -> str:
    """Of memory: as it is written, once it can be read."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    try:
        amount_bytes(text, 0)
    except (TypeError, ValueError):
        raise RejectedError(
            'a share of memory such as "25%", an amount such as "8GiB", or bytes; 0: none'
        ) from None
    assert isinstance(text, str)
    return text


def choice(*names: str) -> Check:
    def check(value: Any) -> str:
        if value not in names:
            raise RejectedError("one of " + ", ".join(f'"{name}"' for name in names))
        return str(value)

    return check


def entries(item: Check, allowed: str) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise RejectedError(allowed)
        try:
            return tuple(item(entry) for entry in value)
        except RejectedError as error:
            raise RejectedError(f"{allowed}; each entry {error}") from None

    return check


def is_utf8(text: str) -> bool:
    """Not so of a variable with bytes that are no text: what names a file stands in JSON, too."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def path(value: Any) -> Path | None:
    if not isinstance(value, str) or "\0" in value:
        raise RejectedError("a path")
    if not is_utf8(value):
        raise RejectedError("a path in UTF-8")
    try:
        return Path(value).expanduser() if value else None
    except RuntimeError:
        raise RejectedError("a path; there is no such user") from None


def peer(value: Any) -> str:
    allowed = '"host:port" with a port from 1 to 65535'
    if isinstance(value, str) and value.count(":") > 1:
        raise RejectedError(f"{allowed}; exod speaks IPv4 alone, so a host has a name or an IPv4 address")
    if not isinstance(value, str) or ":" not in value:
        raise RejectedError(allowed)
    host, port = value.split(":")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", host) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise RejectedError(allowed)
    if not 1 <= int(port) <= 65535:
        raise RejectedError(allowed)
    return value


def kinds(value: Any) -> dict[str, Kind]:
    allowed = "a table of interface names or globs to one of " + ", ".join(f'"{kind}"' for kind in Kind)
    if not isinstance(value, Mapping):
        raise RejectedError(allowed)
    try:
        return {str(name): Kind(kind) for name, kind in value.items()}
    except ValueError:
        raise RejectedError(allowed) from None


def split(value: Any) -> str | tuple[int, ...]:
    if value in ("memory", "even"):
        return str(value)
    counts_allowed = isinstance(value, list | tuple) and 1 <= len(value) <= 8
    if counts_allowed and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in value):
        return tuple(value)
    raise RejectedError('"memory", "even", or a list of 1 to 8 layer counts such as [20, 12]')


def broker(value: Any) -> str:
    allowed = '"auto", "embedded", "off", or "mqtt[s]://user:pass@host:port"'
    if value in ("auto", "embedded", "off"):
        return str(value)
    if not isinstance(value, str):
        raise RejectedError(allowed)
    try:
        url = urlsplit(value)
        valid = url.scheme in ("mqtt", "mqtts") and bool(url.hostname) and url.port != 0 and not url.path.strip("/")
    except ValueError:
        valid = False
    if not valid:
        raise RejectedError(allowed)
    return value


def api_host(value: Any) -> str:
    if not isinstance(value, str) or not (value == "localhost" or _is_address(value)):
        raise RejectedError('an address to listen on, such as "127.0.0.1" or "0.0.0.0"')
    return value


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
