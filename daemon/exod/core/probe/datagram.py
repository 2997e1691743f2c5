"""The datagram codec: one kind of datagram, both ways, authenticated. See docs/protocol.md for the layout.

Decides whether bytes are a datagram of this cluster; never whether a datagram is fresh or meant for this life (that
is replay_window.py and link.py). No clock crosses the wire: the sender keeps a table of its own send stamps, and
the echo says only which of its datagrams was the newest here and how long it was held, so RTT = (t4 - t1) - (t3 -
t2) as in NTP (RFC 5905, section 8) with each difference taken on one host.

The MAC is keyed BLAKE2b (RFC 7693) over everything before it: 128 bits, personalised so that the key's other uses
can never produce it. Both addresses of the path are inside, so a datagram that was carried to another path is found
out.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from enum import IntEnum
from functools import lru_cache

import msgspec

from exod.core.base.errors import IllegalMoveError, WireError
from exod.model import MAX_COUNTER, NodeId, PathId, PathState, Selection

VERSION = 1
MAC_BYTES = 16
MAX_PATHS = 16
"""Paths of one pair: four ports a side and every combination of them."""
MAX_DATAGRAM = 1_200
"""Below the IPv6 minimum MTU (RFC 8200, 1,280 bytes): no tunnel fragments a probe."""
PLAN_PREFIX_BYTES = 8
MAX_INTERVAL_MS = 0xFFFF

_PERSON = b"exod-datagram-1"
_HEAD = struct.Struct(">BB8s8sQQQQQQ4s4sHQ8sQQQ8s8sB")
_REPORT = struct.Struct(">8sBB")

_GOODBYE = 0x01
_URGENT = 0x02
_SELECTION = 0x04
_SELECTED_PATH = 0x08
_WISH = 0x10
_MISSES = 0x20
_ALL_FLAGS = _GOODBYE | _URGENT | _SELECTION | _SELECTED_PATH | _WISH | _MISSES

_STATE_CODES: dict[PathState, int] = {
    PathState.INIT: 0,
    PathState.UP: 1,
    PathState.DEGRADED: 2,
    PathState.DEAD: 3,
}
_STATES: tuple[PathState, ...] = tuple(_STATE_CODES)
_NO_PATH = bytes(8)
_NO_PLAN = bytes(PLAN_PREFIX_BYTES)


class RouteVerdict(IntEnum):
    """Would the ring's own connection leave from the path's local address?"""

    UNKNOWN = 0
    RIGHT = 1
    WRONG = 2


class VersionError(WireError):
    """A holder of the key sends datagrams of another version: the first byte and the MAC are where ours are."""

    def __init__(self, version: int) -> None:
        super().__init__("version", f"protocol version {version}, this is {VERSION}")
        self.version = version


class PathReport(msgspec.Struct, frozen=True, gc=False):
    """One path as the sender alone sees it: its own state, never what it heard from the other end."""

    path: PathId
    state: PathState
    route: RouteVerdict
    loss_percent: int
    """Of the datagrams that the sender should have received on this path."""
    unfit: bool = False
    """The ring failed on it, as the sender saw: its probes may pass all the same."""


class Datagram(msgspec.Struct, frozen=True):
    """One probe. Counters start at 1; 0 means none."""

    sender: NodeId
    destination: NodeId
    sender_incarnation: int
    destination_incarnation: int
    """The incarnation of the destination that the sender knows; 0 for none."""
    seq: int
    """Counts the sender's datagrams on this path."""
    order: int
    """Counts the sender's datagrams to this peer on all paths: a late datagram's reports change nothing."""
    source_address: str
    target_address: str
    interval_ms: int
    """The longest gap the sender leaves before its next datagram on this path (as in BFD, RFC 5880, 6.8.3)."""
    echo_seq: int = 0
    """The newest of the destination's `seq` on this path."""
    hold_ns: int = 0
    """How long that one was held before this datagram was made."""
    epoch_number: int = 0
    plan_prefix: str = ""
    """The first 16 hexadecimal digits of the committed plan's hash."""
    selection: Selection | None = None
    wish: PathId | None = None
    """The path that a person pinned at the sender: asked for, never chosen."""
    reports: tuple[PathReport, ...] = ()
    goodbye: bool = False
    urgent: bool = False
    """The sender misses datagrams: answer fast on every path for a moment."""
    misses: bool = False
    """The sender does not hear every node that others hear: another should coordinate."""


@lru_cache(maxsize=4096)
def _node_bytes(node: NodeId) -> bytes:
    raw = bytes.fromhex(node)
    if len(raw) != 8:
        raise IllegalMoveError("a node id has 16 hexadecimal digits", node=node)
    return raw


@lru_cache(maxsize=4096)
def _address_bytes(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))


@lru_cache(maxsize=4096)
def _address_text(raw: bytes) -> str:
    return ".".join(str(part) for part in raw)


@lru_cache(maxsize=4096)
def _path_bytes(path: PathId) -> bytes:
    low, high = path.split("-")
    return _address_bytes(low) + _address_bytes(high)


@lru_cache(maxsize=4096)
def _path_from_bytes(raw: bytes) -> PathId:
    return PathId(f"{_address_text(raw[:4])}-{_address_text(raw[4:])}")


@lru_cache(maxsize=4096)
def _node_text(raw: bytes) -> NodeId:
    return NodeId(raw.hex())


@lru_cache(maxsize=8)
def _keyed(key: bytes) -> hashlib.blake2b:
    """The hash after the key: half of the work on a datagram, and the same for all."""
    return hashlib.blake2b(digest_size=MAC_BYTES, key=key, person=_PERSON)


def authentication_code(body: bytes, key: bytes) -> bytes:
    code = _keyed(key).copy()
    code.update(body)
    return code.digest()


def encode(datagram: Datagram, key: bytes) -> bytes:
    """The bytes of a datagram, MAC included. IllegalMoveError where a field does not fit: that is our own bug."""
    reports = datagram.reports
    if len(reports) > MAX_PATHS:
        raise IllegalMoveError("too many paths in a datagram", paths=len(reports))
    selection = datagram.selection
    flags = 0
    if datagram.goodbye:
        flags |= _GOODBYE
    if datagram.urgent:
        flags |= _URGENT
    if datagram.misses:
        flags |= _MISSES
    incarnation_low = incarnation_high = selection_seq = 0
    selected = wish = _NO_PATH
    if selection is not None:
        flags |= _SELECTION
        incarnation_low = selection.incarnation_low
        incarnation_high = selection.incarnation_high
        selection_seq = selection.seq
        if selection.path is not None:
            flags |= _SELECTED_PATH
            selected = _path_bytes(selection.path)
    if datagram.wish is not None:
        flags |= _WISH
        wish = _path_bytes(datagram.wish)
    prefix = bytes.fromhex(datagram.plan_prefix) if datagram.plan_prefix else _NO_PLAN
    try:
        body = _HEAD.pack(
            VERSION,
            flags,
            _node_bytes(datagram.sender),
            _node_bytes(datagram.destination),
            datagram.sender_incarnation,
            datagram.destination_incarnation,
            datagram.seq,
            datagram.order,
            datagram.echo_seq,
            datagram.hold_ns,
            _address_bytes(datagram.source_address),
            _address_bytes(datagram.target_address),
            datagram.interval_ms,
            datagram.epoch_number,
            prefix,
            incarnation_low,
            incarnation_high,
            selection_seq,
            selected,
            wish,
            len(reports),
        ) + _report_bytes(reports)
    except struct.error as error:
        raise IllegalMoveError("a field does not fit the datagram", error=str(error)) from error
    return body + authentication_code(body, key)


@lru_cache(maxsize=256)
def _report_bytes(reports: tuple[PathReport, ...]) -> bytes:
    """What both ends report stays the same for minutes, in every datagram."""
    return b"".join(
        _REPORT.pack(
            _path_bytes(one.path), _STATE_CODES[one.state] | one.route << 2 | one.unfit << 4, one.loss_percent
        )
        for one in reports
    )


def _authentic(data: bytes, key: bytes) -> bytes:
    """What the MAC is over."""
    if not _HEAD.size + MAC_BYTES <= len(data) <= MAX_DATAGRAM:
        raise WireError("malformed", f"{len(data)} bytes are no datagram of ours")
    body = data[:-MAC_BYTES]
    if not hmac.compare_digest(authentication_code(body, key), data[-MAC_BYTES:]):
        if data[0] != VERSION:  # a version with another MAC, or a stranger: no sender is known either way
            raise WireError("malformed", f"protocol version {data[0]}, this is {VERSION}")
        raise WireError("bad_mac", "made with another cluster key, or changed on the way")
    if data[0] != VERSION:
        raise VersionError(data[0])
    return body


def counters_sane(datagram: Datagram) -> bool:
    """Whether each counter leaves room to grow: one that is beyond would be the last that anybody believed."""
    selection = datagram.selection
    counters = [datagram.sender_incarnation, datagram.destination_incarnation, datagram.epoch_number]
    if selection is not None:
        counters += [selection.incarnation_low, selection.incarnation_high, selection.seq]
    return max(counters) <= MAX_COUNTER


def decode(data: bytes, key: bytes) -> Datagram:
    """The datagram in these bytes. WireError (`malformed`, `bad_mac`, `version`), and nothing else, for others.

    Nothing past the length and the version is looked at before the MAC is right.
    """
    body = _authentic(data, key)
    (
        _,
        flags,
        sender,
        destination,
        sender_incarnation,
        destination_incarnation,
        seq,
        order,
        echo_seq,
        hold_ns,
        source,
        target,
        interval_ms,
        epoch_number,
        prefix,
        incarnation_low,
        incarnation_high,
        selection_seq,
        selected,
        wish,
        count,
    ) = _HEAD.unpack_from(body)
    if count > MAX_PATHS or len(body) != _HEAD.size + count * _REPORT.size:
        raise WireError("malformed", f"{len(data)} bytes do not hold {count} path reports")
    if flags & ~_ALL_FLAGS or not sender_incarnation or not seq or not order:
        raise WireError("malformed", "unknown flags or a missing counter")
    return Datagram(
        sender=_node_text(sender),
        destination=_node_text(destination),
        sender_incarnation=sender_incarnation,
        destination_incarnation=destination_incarnation,
        seq=seq,
        order=order,
        echo_seq=echo_seq,
        hold_ns=hold_ns,
        source_address=_address_text(source),
        target_address=_address_text(target),
        interval_ms=interval_ms,
        epoch_number=epoch_number,
        plan_prefix="" if prefix == _NO_PLAN else prefix.hex(),
        selection=_selection(flags, incarnation_low, incarnation_high, selection_seq, selected),
        wish=_path_from_bytes(wish) if flags & _WISH else None,
        reports=_reports(body[_HEAD.size :], count),
        goodbye=bool(flags & _GOODBYE),
        urgent=bool(flags & _URGENT),
        misses=bool(flags & _MISSES),
    )


@lru_cache(maxsize=1024)
def _selection(
    flags: int, incarnation_low: int, incarnation_high: int, seq: int, selected: bytes
) -> Selection | None:
    if not flags & _SELECTION:
        return None
    if not (incarnation_low and incarnation_high and seq):
        raise WireError("malformed", "a selection without incarnations or number")
    path = _path_from_bytes(selected) if flags & _SELECTED_PATH else None
    return Selection(incarnation_low, incarnation_high, seq, path)


@lru_cache(maxsize=1024)
def _reports(packed: bytes, count: int) -> tuple[PathReport, ...]:
    reports = []
    for place in range(count):
        raw, code, loss_percent = _REPORT.unpack_from(packed, place * _REPORT.size)
        route, unfit = code >> 2 & 3, code >> 4
        if route > RouteVerdict.WRONG or unfit > 1 or loss_percent > 100:
            raise WireError("malformed", "a path report out of its bounds")
        reports.append(
            PathReport(_path_from_bytes(raw), _STATES[code & 3], _ROUTES[route], loss_percent, unfit == 1)
        )
    return tuple(reports)


_ROUTES: tuple[RouteVerdict, ...] = tuple(RouteVerdict)
