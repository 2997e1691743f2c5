"""Where a broker is and how to log in there; and what `[mqtt] broker` says. Pure.

A password lives in `BrokerAddress.password` alone: `str` and `repr` of an address never show it, and no error text
quotes the URL that it came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

LOOPBACK: Final = "127.0.0.1"
PORT: Final = 1883
"""The port registered for MQTT."""
TLS_PORT: Final = 8883
"""The port registered for MQTT over TLS."""

Origin = Literal["configured", "found", "mosquitto", "embedded"]
"""Who runs it: a configured one, one that was found on loopback, or one that this daemon hosts."""


@dataclass(frozen=True)
class BrokerAddress:
    host: str
    port: int
    origin: Origin
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        place = f"{host}:{self.port}"
        return f"{self.origin} on {place}" if self.origin in ("mosquitto", "embedded") else place


def configured_broker(url: str) -> BrokerAddress:
    """The address in `mqtt[s]://user:pass@host:port`; user and password may be percent-encoded.

    Raises ValueError with what is allowed; its text never contains a part of `url`.
    """
    allowed = "mqtt[s]://user:pass@host:port (special characters of user and password percent-encoded)"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text would quote the port, which is part of the password where that has a slash
        raise ValueError(allowed) from None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path.strip("/"):
        raise ValueError(allowed)
    tls = parts.scheme == "mqtts"
    return BrokerAddress(
        host=parts.hostname,
        port=(TLS_PORT if tls else PORT) if port is None else port,
        origin="configured",
        tls=tls,
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
    )
