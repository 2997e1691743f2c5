"""The MAC keys of datagrams while the cluster key changes: which ones open a datagram.

Decides only by which key a datagram was made; whom it is believed from by an older one is core/node.py's question.
"""

from __future__ import annotations

from exod.core.base.errors import WireError
from exod.core.probe.datagram import Datagram, decode


class DatagramKeys:
    """`newest` is what this node's new links begin with."""

    def __init__(self, newest: bytes) -> None:
        self._keys: tuple[bytes, ...] = (newest,)

    @property
    def newest(self) -> bytes:
        return self._keys[0]

    def follow(self, keys: tuple[bytes, ...]) -> None:
        self._keys = keys

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def open(self, data: bytes) -> tuple[Datagram, bytes]:
        """The datagram and its key. WireError as `decode` raises it: of the newest key, where none fits."""
        try:
            return decode(data, self._keys[0]), self._keys[0]
        except WireError as error:
            if error.code != "bad_mac":
                raise
            for key in self._keys[1:]:
                try:
                    return decode(data, key), key
                except WireError as another:
                    if another.code != "bad_mac":
                        raise
            raise
