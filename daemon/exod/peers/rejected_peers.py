"""Who was refused lately, because of another cluster key or another version of the protocol, and when that is worth
a line in the log.

Decides nothing about connections.
"""

from __future__ import annotations

import ssl
import time
from typing import Final

import msgspec
import structlog

from exod.core.base.facts import OTHER_KEY, VERSION_SKEW, Fact, skew_text
from exod.model import NodeId

log = structlog.get_logger()

LOG_INTERVAL_S: Final = 60.0
SHOWN_S: Final = 150.0
"""One that still tries is noted again within two intervals; one that gave up is history."""

SKEW_SHOWN_S: Final = 20.0
"""A peer dials every 3 s: six in vain, and it is gone or upgraded."""

MAX_STRANGERS: Final = 64

KEY_CURE: Final = (
    "if both belong together, run exoctl cluster invite where the right key is and exoctl cluster join --replace "
    "on the other, then restart exod there; if not, give one of them another cluster.name"
)

_OF_A_NODE: Final = frozenset({"CERTIFICATE_VERIFY_FAILED", "TLSV1_ALERT_UNKNOWN_CA", "TLSV1_ALERT_DECRYPT_ERROR"})
"""What TLS says where the other end showed a certificate, or did not believe ours: another exod, and no scanner.
Both ends of a pair learn it, as each dials the other; TLS does not tell the end that was dialled."""


class _Noted(msgspec.Struct, frozen=True):
    at: float
    text: str
    address: str
    is_node: bool


class Strangers:
    """Who has another cluster key, or none."""

    def __init__(self) -> None:
        self._noted: dict[str, _Noted] = {}

    def note(self, address: str, name: str, error: ssl.SSLError) -> None:
        """Logs a peer whose key is not ours, once a minute for each."""
        now = time.monotonic()
        who = f"{name} ({address})" if name and name != address else address
        last = self._noted.get(who)
        if last is not None and now - last.at < LOG_INTERVAL_S:
            return
        self._noted.pop(who, None)
        is_node = error.reason in _OF_A_NODE
        self._noted[who] = _Noted(now, f"{who} was refused: it has another cluster key, or none", address, is_node)
        while len(self._noted) > MAX_STRANGERS:
            self._noted.pop(next(iter(self._noted)))
        log.warning("stranger_refused", who=who, text="it has another cluster key, or none", error=error.reason)

    def _lately(self) -> list[_Noted]:
        since = time.monotonic() - SHOWN_S
        return [one for one in self._noted.values() if one.at > since]

    def texts(self) -> tuple[str, ...]:
        """As text."""
        return tuple(one.text for one in self._lately())

    def facts(self, cluster: str) -> tuple[Fact, ...]:
        """Of those that are exod nodes, once for each address."""
        known = {one.address: one for one in self._lately() if one.is_node}
        return tuple(
            Fact(
                OTHER_KEY,
                address,
                f"{one.text.partition(' was refused')[0]} runs exod with another key than this node of the cluster "
                f"{cluster}: each refuses the other; {KEY_CURE}",
            )
            for address, one in sorted(known.items())
        )


class _Skew(msgspec.Struct, frozen=True):
    at: float
    logged_at: float
    name: str
    theirs: int


class ForeignVersions:
    """Peers of this cluster whose control protocol is another one."""

    def __init__(self, ours: int) -> None:
        self._ours = ours
        self._noted: dict[NodeId, _Skew] = {}

    def note(self, peer: NodeId, name: str, theirs: int) -> None:
        """Logs it once a minute for each."""
        now, known = time.monotonic(), self._noted.get(peer)
        is_due = known is None or now - known.logged_at >= LOG_INTERVAL_S
        self._noted[peer] = _Skew(now, now if known is None or is_due else known.logged_at, name, theirs)
        if is_due:
            log.warning("version_skew", peer=peer, name=name, control_protocol=theirs, ours=self._ours)

    def facts(self, my_name: str) -> tuple[Fact, ...]:
        since = time.monotonic() - SKEW_SHOWN_S
        self._noted = {peer: one for peer, one in self._noted.items() if one.at > since}
        return tuple(
            Fact(VERSION_SKEW, peer, skew_text(one.name, my_name, "the control protocol", one.theirs, self._ours))
            for peer, one in self._noted.items()
        )
