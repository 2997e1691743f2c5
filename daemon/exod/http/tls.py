"""TLS for the HTTP API by a certificate and a key of the user's, read again when either file changes.

Never decides who may ask: the guard does, with and without TLS. A file that cannot be used prevents the start; once
the API serves, it keeps the last certificate that worked. Raises ConfigError.
"""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import Final

import structlog

from exod.errors import ConfigError

CURE: Final = "api.tls_cert is a PEM file with the certificate and its chain, api.tls_key one with its private key"

_log = structlog.get_logger("http_api")

Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """`context` serves every new connection; it is changed in place when the files change."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._stamp = self._look()
        self._load(self.context)

    def renew(self) -> None:
        """Reads the files again where one has changed, so that a certificate is renewed without a restart."""
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # half a pair would spoil the other
            self._load(self.context)
        except ConfigError as error:
            _log.warning("http_certificate_kept", text=str(error))
        else:
            _log.info("http_certificate_renewed", file=str(self._files[0]))

    def _look(self) -> Stamp:
        found = []
        for file in self._files:
            try:
                status = file.stat()
            except OSError as error:
                raise ConfigError(f"{file}: cannot be read: {error.strerror}; {CURE}") from None
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(found)

    def _load(self, context: ssl.SSLContext) -> None:
        certificate, key = self._files
        try:
            if key.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
                raise ConfigError(f"{key}: everybody can read this private key; run: chmod o= {key}")
            context.load_cert_chain(certificate, key, password=_no_password)
        except ssl.SSLError as error:
            what = error.reason or "they are not PEM"
            raise ConfigError(f"{certificate} and {key}: not a certificate and its key ({what}); {CURE}") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"{certificate} and {key}: cannot be read: {reason}; {CURE}") from None


def _no_password() -> str:
    """A daemon has nobody to ask for a password."""
    raise ValueError("the key has a password")
