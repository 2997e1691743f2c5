"""Who may use the HTTP API: bearer keys, and without keys only this host's own programs.

Decides from a request's headers alone; never reads a body. With a key file, everything but `/health` and the page's
own files needs one of its keys. Without one the API is on loopback, where web pages in a browser on this host are
the remaining danger. Three checks keep them out: the names that a Host header may hold (a page that rebinds its own
name to 127.0.0.1 sends that name), the origins that may send requests (a page of another site sends its own), and,
where a browser sends no Origin, its Sec-Fetch-Site header. Pages of the allowed origins get CORS headers, others
never do.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from exod.errors import ConfigError, RequestError
from exod.http.page_files import is_page

MAX_KEY_FILE_BYTES: Final = 256 * 1024
MIN_KEY_CHARS: Final = 16
"""Shorter keys can be guessed at the rate that an API answers."""

OPEN_PATHS: Final = frozenset({"/health"})
"""What a load balancer must reach without a key; it shows only that the process runs."""

ANY_ORIGIN: Final = "*"
"""In `api.origins`: pages of every site. The configuration allows it only beside keys."""

APP_SCHEME: Final = "app"
"""Desktop programs that show pages of their own (Electron): no web site has this scheme."""

PREFLIGHT_S: Final = 600
"""For how long a browser may remember that an origin is allowed: Chromium's default limit is 2 hours, and a changed
configuration should not take so long to be noticed."""

MAX_REQUESTED_HEADERS: Final = 64
_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}( ?, ?[A-Za-z0-9_.-]{1,64})*")

OWN_SITES: Final = frozenset({"same-origin", "same-site", "none"})
"""Of Sec-Fetch-Site: pages on loopback, and what a person typed. No other word is believed."""

NO_HOST: Final = frozenset("@/\\?# \t")
"""Not in a Host header: a browser sends none of them, and two readers see two names where one is."""

EXPOSED_HEADERS: Final = b"retry-after, x-should-retry"
"""What a client in a page must read to know when, and whether, to ask again; others a browser hides from it."""


class HttpGuard:
    """Made once at start, used for each request. `hosts` and `origins` are allowed beside the built-in ones."""

    def __init__(
        self, keys: tuple[str, ...] = (), hosts: tuple[str, ...] = (), origins: tuple[str, ...] = ()
    ) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)
        self._hosts = frozenset(map(str.lower, hosts)) | own_names()
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Raises RequestError where this request may not be served. Header names are lower case."""
        if path in OPEN_PATHS:
            return
        if self._digests and not is_page(path):
            self._check_key(headers)
        elif not self._digests:
            self._check_host(headers.get("host", ""))
            self._check_page(path, headers)

    def preflight(self, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]] | None:
        """The headers that answer a CORS preflight; None where this is no preflight. It needs no key, because a
        browser sends none with it. Raises RequestError for an origin that is not allowed.
        """
        if "origin" not in headers or "access-control-request-method" not in headers:
            return None
        if not self._digests:
            self._check_host(headers.get("host", ""))
        allowed = self.cors(headers)
        if not allowed:
            raise _origin_refused(headers["origin"])
        wanted = headers.get("access-control-request-headers", "")
        if _HEADER_NAMES.fullmatch(wanted) and wanted.count(",") < MAX_REQUESTED_HEADERS:
            allowed.append((b"access-control-allow-headers", wanted.encode("latin-1")))
        if headers.get("access-control-request-private-network") == "true":
            allowed.append((b"access-control-allow-private-network", b"true"))
        return [
            *allowed,
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-max-age", str(PREFLIGHT_S).encode()),
        ]

    def cors(self, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
        """The headers that let a page of an allowed origin read the answer; none for any other origin."""
        origin = headers.get("origin", "")
        if not origin or not self._is_allowed(origin):
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", EXPOSED_HEADERS),
            (b"vary", b"origin"),
        ]

    def _check_key(self, headers: Mapping[str, str]) -> None:
        given = hashlib.sha256(key_of(headers).encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, in constant time, so that the time reveals nothing about any key.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(matches):
            raise RequestError("invalid_api_key", "this API needs a key: send 'Authorization: Bearer KEY'")

    def _check_host(self, host: str) -> None:
        """A request without a Host header comes from no browser."""
        try:
            parts = urlsplit(f"//{host}")
            name, _ = (parts.hostname or "").removesuffix("."), parts.port
        except ValueError:
            raise RequestError("host_refused", "the Host header is not a host's name and a port") from None
        if set(host) & NO_HOST:
            raise RequestError("host_refused", "the Host header is a name and a port, and nothing else")
        if host and not (_is_address(name) or _is_loopback_name(name) or name in self._hosts):
            raise RequestError(
                "host_refused",
                f"this API has no keys and is not known as '{name[:100]}' here: use 127.0.0.1, add the name to "
                "api.hosts, or set api.key_file",
            )

    def _check_page(self, path: str, headers: Mapping[str, str]) -> None:
        origin = headers.get("origin")
        if origin is not None:
            if not self._is_allowed(origin):
                raise _origin_refused(origin)
        elif headers.get("sec-fetch-site", "none").strip().lower() not in OWN_SITES and not _is_visit(
            path, headers
        ):
            raise RequestError("origin_refused", "a page of another site asked for this; it may not")

    def _is_allowed(self, origin: str) -> bool:
        origin = origin.lower()
        if origin in self._origins or (ANY_ORIGIN in self._origins and origin != "null"):
            return True
        try:
            parts = urlsplit(origin)
            host = parts.hostname or ""
        except ValueError:
            return False
        if parts.scheme == APP_SCHEME:
            return True
        return parts.scheme in ("http", "https") and (_is_loopback_name(host) or _is_loopback_address(host))


def key_of(headers: Mapping[str, str]) -> str:
    """The key that a request brings, as OpenAI's clients send it or as Anthropic's do; empty without one."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def own_names() -> frozenset[str]:
    """The names of this host: in full, short, and as multicast DNS announces it. Uses no resolver: a hostile one
    could answer with any name.
    """
    name = socket.gethostname().lower().removesuffix(".")
    short = name.partition(".")[0]
    return frozenset({name, short, f"{short}.local"}) - {"", ".local"}


def _origin_refused(origin: str) -> RequestError:
    return RequestError(
        "origin_refused",
        f"pages of '{origin[:100]}' may not use this API: add it to api.origins, or set api.key_file and send "
        "a key",
    )


def _is_visit(path: str, headers: Mapping[str, str]) -> bool:
    """Did a person follow a link of another site to the page of this API? That site can read nothing of it."""
    return (
        path == "/" and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    )


def _is_address(name: str) -> bool:
    """An address needs no DNS, so no page can use it to make its own name resolve to this host."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback_address(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_loopback_name(name: str) -> bool:
    """RFC 6761, 6.3: these resolve to loopback and are not looked up."""
    return name == "localhost" or name.endswith(".localhost")


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
