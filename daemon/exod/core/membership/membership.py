"""Which cluster key is in force, who is given it, and who was removed: rotation, removal, invitations.

The theory. A rotation makes a new key with the next number. Its maker gives it to every member that it is connected
to, and each of them to its own, over TLS. A key that is replaced is retired: for RETIRED_S it still opens a
connection on which a node that was away may fetch the new key, and nothing else. The old key alone is no proof
there, for a removed node has it too. So each node has a key pair of its own, and the others remember its public
half (the pin) from when it was a member; a node is given the new key if it shows the pinned one and was not
removed. It takes a new key only from a node whose pin it remembers.

Of two rotations at the same time the higher (number, key) wins everywhere; a removal that lost is repeated by the
node that lost it, and what was removed stays removed.

Decides about keys; never draws one, and never opens or closes a connection: commands say what is to be done. Times
are Unix seconds, because they are kept over restarts.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from exod.model import Counter, NodeId

RETIRED_S: Final = 7 * 86_400.0
"""As long as a node that is down is waited for (LOST_S in core/node.py). Who comes later is invited anew."""

MAX_RETIRED: Final = 8
"""Rotations whose keys still open the door of the returning: each costs a certificate and a try at a dial."""

MAX_PINS: Final = 64
"""As many peers as a node knows at all."""

MAX_REMOVED: Final = 256

MOST_AHEAD: Final = 1_000_000
"""How many rotations a node may have missed. A member that claimed the last number that the wire has room for could
never be rotated out.
"""

MAX_INVITATIONS: Final = 16
MAX_INVITED_S: Final = 7 * 86_400.0
"""A door that stays open longer is no invitation; the cluster key itself is handed over then."""

Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Secret = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Pin = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
"""SHA-256 of a node's public key."""


class ClusterKey(msgspec.Struct, frozen=True):
    number: Counter
    """How many rotations lie before it, as far as its holder knows."""
    key: Key
    by: str
    """The name of the node whose person asked for it, for texts."""

    @property
    def order(self) -> tuple[int, bytes]:
        return self.number, self.key


class RetiredKey(msgspec.Struct, frozen=True):
    was: ClusterKey
    until: float


class Invitation(msgspec.Struct, frozen=True):
    secret: Secret
    until: float
    once: bool
    guest: str = ""
    """The pin of the node that redeemed it first: it may ask again, if its connection broke."""


class MembershipRecord(msgspec.Struct, frozen=True):
    """All that is kept over restarts."""

    current: ClusterKey
    retired: tuple[RetiredKey, ...] = ()
    """Newest first."""
    pins: dict[NodeId, Pin] = {}
    removed: dict[NodeId, Counter] = {}
    """Node -> the number of the key that it was not given."""
    invitations: tuple[Invitation, ...] = ()
    key_written: bool = True
    """Does the key file hold `current` already?"""


# --- commands -----------------------------------------------------------------------------------------------


class SaveRecord(msgspec.Struct, frozen=True):
    """The record changed: write it down."""


class AdoptKey(msgspec.Struct, frozen=True):
    """From now on this is the key; the one before is retired. Tell every peer."""

    key: ClusterKey
    expelled: tuple[NodeId, ...]
    """Who was removed by it: their connections end, and they are forgotten."""


class OfferKey(msgspec.Struct, frozen=True):
    """Send the current key, with what was removed, to this peer."""

    peer: NodeId


class RefusePeer(msgspec.Struct, frozen=True):
    """This peer gets no key; `text` is for people."""

    peer: NodeId
    text: str


class RemoveAgain(msgspec.Struct, frozen=True):
    """Another rotation won over one of ours that left these out: rotate once more without them."""

    nodes: tuple[NodeId, ...]


class AdmitGuest(msgspec.Struct, frozen=True):
    """A node that holds this invitation is given the current key."""

    invitation: Invitation


MembershipCommand = SaveRecord | AdoptKey | OfferKey | RefusePeer | RemoveAgain | AdmitGuest
Commands = list[MembershipCommand]


class Membership:
    """One node's view. `me` is its id; `record` is what it kept."""

    def __init__(self, me: NodeId, record: MembershipRecord) -> None:
        self._me = me
        self.record = record
        self.holders: set[NodeId] = set()
        """Peers that hold the current key, as they showed."""
        self._own_removals: dict[NodeId, int] = {}
        """What a person removed here, until it is seen that the cluster took it over."""

    @property
    def current(self) -> ClusterKey:
        return self.record.current

    def away(self) -> frozenset[NodeId]:
        """Members that are not known to hold the current key."""
        removed = {node for node in self.record.removed if node not in self.holders}
        return frozenset(self.record.pins) - self.holders - removed

    def retired(self, now: float) -> tuple[ClusterKey, ...]:
        """Retired keys with which a returning node may still connect, newest first."""
        return tuple(one.was for one in self.record.retired if one.until > now)

    # --- rotation and removal -------------------------------------------------------------------------------

    def rotate(self, fresh: bytes, by: str, leave_out: tuple[NodeId, ...], now: float) -> Commands:
        """A person asked for it. `fresh` are 32 random bytes."""
        key = ClusterKey(self.current.number + 1, fresh, by)
        removed = dict.fromkeys(leave_out, key.number)
        self._own_removals |= removed
        return self._adopt(key, self.record.removed | removed, now)

    def offered(self, peer: NodeId, pin: str, key: ClusterKey, removed: dict[NodeId, int], now: float) -> Commands:
        """A peer gives its key."""
        if self.record.pins.get(peer) != pin:
            return [RefusePeer(peer, "it offers a key, but is not the node that this one knows by that id")]
        if key.number > self.current.number + MOST_AHEAD:
            return [RefusePeer(peer, "it offers a key with a number that no cluster reaches")]
        merged = self._merged(removed)
        if key.order > self.current.order:
            commands = self._adopt(key, merged, now) + self._repeat_removals(removed)
            self.holders.add(peer)
            return commands
        commands = []
        if merged != self.record.removed:
            self._change(removed=merged)
            commands.append(SaveRecord())
        if key.order == self.current.order:
            self.holders.add(peer)
        else:
            commands.append(OfferKey(peer))
        return commands

    def _adopt(self, key: ClusterKey, removed: dict[NodeId, int], now: float) -> Commands:
        before = self.current
        kept = [one for one in self.record.retired if one.until > now and one.was.key != key.key]
        retired = [RetiredKey(before, now + RETIRED_S), *kept][:MAX_RETIRED]
        oldest = min(one.was.number for one in retired)
        newest_first = sorted(removed.items(), key=lambda item: -item[1])
        still = {node: number for node, number in newest_first[:MAX_REMOVED] if number > oldest}
        known = self.record.removed
        expelled = tuple(sorted(node for node, number in still.items() if number > known.get(node, 0)))
        pins = {node: pin for node, pin in self.record.pins.items() if node not in expelled}
        self.record = MembershipRecord(key, tuple(retired), pins, still)
        self.holders.clear()
        return [AdoptKey(key, expelled)]

    def _merged(self, removed: dict[NodeId, int]) -> dict[NodeId, int]:
        mine = self.record.removed
        others = {node: max(number, mine.get(node, 0)) for node, number in removed.items() if node != self._me}
        return dict(sorted((mine | others).items(), key=lambda item: -item[1])[:MAX_REMOVED])

    def _repeat_removals(self, seen: dict[NodeId, int]) -> Commands:
        """A key won over ours whose maker had not heard of a removal: it may have given it to whom we left out."""
        still = {node: number for node, number in self._own_removals.items() if node in self.record.removed}
        lost = tuple(sorted(node for node, number in still.items() if seen.get(node, 0) < number))
        self._own_removals.clear()
        return [RemoveAgain(lost)] if lost else []

    # --- who is given the key -------------------------------------------------------------------------------

    def greeted(self, peer: NodeId, pin: str, number: int, proven_by: bytes) -> Commands:
        """A peer greeted over a connection that the key `proven_by` opened; `number` is that of its own key."""
        if proven_by != self.current.key:
            return []
        self.holders.add(peer)
        commands: Commands = []
        known = self.record.pins.get(peer)
        if known is None and len(self.record.pins) < MAX_PINS:
            self._change(pins={**self.record.pins, peer: pin})
            commands.append(SaveRecord())
        elif known is not None and known != pin:
            commands.append(RefusePeer(peer, "it shows another key of its own than before, and gets no new key"))
        if self.current.number < number <= self.current.number + MOST_AHEAD:
            current = self.current
            self._change(current=ClusterKey(number, current.key, current.by))
            commands.append(SaveRecord())
        return commands

    def asks(self, peer: NodeId, pin: str, proven_by: bytes, now: float) -> Commands:
        """May this peer have the current key? It is connected by the key `proven_by`, which may be retired."""
        if proven_by == self.current.key:
            return []
        number = next((one.number for one in self.retired(now) if one.key == proven_by), None)
        if number is None:
            return [RefusePeer(peer, "its key was retired too long ago: invite it anew")]
        if self.record.removed.get(peer, 0) > number:
            return [RefusePeer(peer, "it was removed from the cluster")]
        if self.record.pins.get(peer) != pin:
            return [RefusePeer(peer, "it is not a node that this one knows: invite it anew")]
        return [OfferKey(peer)]

    def holds(self, peer: NodeId) -> None:
        """It said, over its own connection, that it holds the current key."""
        self.holders.add(peer)

    def forget(self, peer: NodeId) -> Commands:
        """A person, or a week, says that it does not come back: a node with its id is then a new one."""
        if peer not in self.record.pins:
            return []
        self._change(pins={node: pin for node, pin in self.record.pins.items() if node != peer})
        self.holders.discard(peer)
        return [SaveRecord()]

    # --- invitations ----------------------------------------------------------------------------------------

    def open_invitations(self, now: float) -> tuple[Invitation, ...]:
        return tuple(one for one in self.record.invitations if one.until > now)

    def invite(self, secret: bytes, for_s: float, once: bool, now: float) -> Commands:
        """No command where there are as many as there may be."""
        still = self.open_invitations(now)
        if len(still) >= MAX_INVITATIONS:
            return []
        self._change(invitations=(*still, Invitation(secret, now + min(for_s, MAX_INVITED_S), once)))
        return [SaveRecord()]

    def redeemed(self, guest: NodeId, secret: bytes, pin: str, now: float) -> Commands:
        """Somebody proved that it holds the invitation."""
        found = next((one for one in self.open_invitations(now) if one.secret == secret), None)
        if found is None:
            return [RefusePeer(guest, "the invitation is not open any more")]
        if found.once and found.guest not in ("", pin):
            return [RefusePeer(guest, "the invitation was for one node, and another has used it")]
        taken = msgspec.structs.replace(found, guest=found.guest or pin)
        others = tuple(taken if one is found else one for one in self.open_invitations(now))
        self._change(invitations=others)
        return [SaveRecord(), AdmitGuest(taken)]

    def _change(self, **changes: object) -> None:
        self.record = msgspec.structs.replace(self.record, **changes)
