"""The certificates of a connection to a broker by `mqtts`: whom to believe, and how to prove who we are.

Reads files, in the caller's thread. The host's name is always checked.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from exod.errors import StartError


@dataclass(frozen=True)
class TlsFiles:
    """`ca` None: the system's authorities. `cert` and `key` None: no certificate of our own."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Read anew for each connection, so that a renewed certificate is taken. Raises StartError."""
        try:
            made = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
        except (OSError, ssl.SSLError) as error:
            raise StartError(f"{self.ca}: mqtt.ca_file cannot be used: {_reason(error)}") from None
        if self.cert is not None and self.key is not None:
            try:
                made.load_cert_chain(self.cert, self.key, password=_no_password)
            except (OSError, ssl.SSLError, ValueError) as error:
                text = f"{self.cert}, {self.key}: mqtt.cert_file and mqtt.key_file cannot be used: {_reason(error)}"
                raise StartError(text) from None
        return made


def _no_password() -> str:
    """A key with a password would make OpenSSL ask on a terminal that a service has not."""
    raise ValueError("the key has a password: store it without")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
