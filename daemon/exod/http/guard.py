"""Who may use the HTTP API: bearer keys, and without keys only this host's own programs.

Decides from a request's headers alone; never reads a body. With a key file, every endpoint but `/health` needs
one of its keys. Without one the API is on loopback, where the remaining strangers are web pages in a browser on
this host: a page that rebinds its own name to 127.0.0.1 betrays itself by the Host header, and one that posts
across sites by the Origin header. No CORS header is ever sent. Called by `http_api.py` for every request.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from exod.errors import ConfigError, RequestError

MAX_KEY_FILE_BYTES: Final = 256 * 1024
MIN_KEY_CHARS: Final = 16
"""Shorter keys can be guessed at the rate that an API answers."""

OPEN_PATHS: Final = frozenset({"/health"})
"""What a load balancer must reach without a key; it says nothing but that the process lives."""

LOCAL_SUFFIXES: Final = (".localhost", ".internal")
"""Names that no public DNS can hold: `host.docker.internal` is how a container on a Mac reaches its host."""


class HttpGuard:
    """Made once at start; `check` is called for each request."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Raises RequestError where this request may not be served. Header names are lower case."""
        if path in OPEN_PATHS:
            return
        if self._digests:
            self._check_key(headers.get("authorization", ""))
        else:
            _check_host(headers.get("host", ""))
            _check_origin(headers.get("origin", ""))

    def _check_key(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, in constant time: how long it takes tells nothing about any of them.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise RequestError("invalid_api_key", "this API needs a key: send 'Authorization: Bearer KEY'")


def _check_host(host: str) -> None:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        raise RequestError("host_refused", "the Host header is not a host's name") from None
    if name and not _is_local_name(name):
        raise RequestError(
            "host_refused",
            f"this API has no keys and is for this host alone, not '{name}': use 127.0.0.1, or set api.key_file",
        )


def _check_origin(origin: str) -> None:
    try:
        parts = urlsplit(origin)
        strange = parts.scheme in ("http", "https") and not _is_local_name(parts.hostname or "")
    except ValueError:
        strange = True
    if strange:
        raise RequestError(
            "origin_refused", "web pages of other sites may not use this API; set api.key_file and send a key"
        )


def _is_local_name(name: str) -> bool:
    """Is it an address, or a name that a stranger cannot make resolve to this host?"""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(LOCAL_SUFFIXES)
    return True


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys in `path`, one a line; empty lines and `#` comments are skipped. Raises ConfigError."""
    if path is None:
        return ()
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = stream.read(MAX_KEY_FILE_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"{path}: the keys of the HTTP API (api.key_file) cannot be read: {reason}") from None
    if mode & 0o077:
        raise ConfigError(f"{path}: others can read these keys (mode {mode:04o}); run: chmod 600 {path}")
    keys = tuple(line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#"))
    if not keys or any(len(key) < MIN_KEY_CHARS or not key.isascii() or " " in key for key in keys):
        raise ConfigError(
            f"{path}: allowed is one key a line, at least {MIN_KEY_CHARS} ASCII characters without spaces; "
            f"make one with: openssl rand -hex 32 > {path}"
        )
    return keys
