"""While the cluster key changes a node understands both keys, and each peer is sent the one that it has."""

from __future__ import annotations

import pytest

from exod.core.base.config import CoreConfig
from exod.core.base.errors import WireError
from exod.core.base.events import (
    Command,
    DatagramReceived,
    KeysChanged,
    LogRejected,
    PeerCardReceived,
    PeerHoldsKey,
    SendDatagram,
)
from exod.core.node import NodeCore
from exod.core.probe.datagram import Datagram, encode
from exod.core.probe.datagram_keys import DatagramKeys
from exod.model import NodeId
from tests.core.pair.cards import card

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
ME, PEER = card(1, "bridge0=10.0.0.1/24"), card(2, "bridge0=10.0.0.2/24")
MINE, ITS = ME.addresses[0].address, PEER.addresses[0].address


def datagram(seq: int) -> Datagram:
    return Datagram(PEER.id, ME.id, PEER.incarnation, ME.incarnation, seq, seq, ITS, MINE, 1000)


class Node:
    def __init__(self) -> None:
        self.core = NodeCore(ME, OLD, CoreConfig(), "linux", 1, 0, 0.0)
        self.now, self.seq = 0.0, 0
        self.core.handle(PeerCardReceived(PEER), 0.0)

    def hears(self, key: bytes) -> list[str]:
        """The codes by which a datagram of the peer is refused."""
        self.seq += 1
        self.now += 0.01
        data = encode(datagram(self.seq), key)
        commands = self.core.handle(DatagramReceived(MINE, ITS, data, self.now), self.now)
        return [one.code for one in commands if isinstance(one, LogRejected)]

    def sends_with(self) -> set[bytes]:
        sent: list[Command] = []
        while not any(isinstance(one, SendDatagram) for one in sent):
            self.now += 0.05
            sent += self.core.handle_timer(self.now)
        return {key for one in sent if isinstance(one, SendDatagram) for key in (OLD, NEW) if opens(one.data, key)}


def opens(data: bytes, key: bytes) -> bool:
    try:
        DatagramKeys(key).open(data)
    except WireError:
        return False
    return True


def test_a_peer_is_sent_the_old_key_until_it_is_known_to_hold_the_new_one() -> None:
    node = Node()
    node.core.handle(KeysChanged((NEW, OLD)), node.now)
    assert node.sends_with() == {OLD}
    assert node.hears(OLD) == []
    node.core.handle(PeerHoldsKey(NodeId(PEER.id)), node.now)
    assert node.sends_with() == {NEW}


def test_a_datagram_by_the_new_key_tells_that_its_sender_holds_it() -> None:
    node = Node()
    node.core.handle(KeysChanged((NEW, OLD)), node.now)
    assert node.hears(NEW) == []
    assert node.sends_with() == {NEW}


def test_who_holds_the_new_key_is_not_believed_by_the_old_one() -> None:
    node = Node()
    node.core.handle(KeysChanged((NEW, OLD)), node.now)
    node.hears(NEW)
    assert node.hears(OLD) == ["bad_mac"]


@pytest.mark.parametrize("key", [OLD, OTHER])
def test_after_the_overlap_the_old_key_is_a_stranger_s(key: bytes) -> None:
    node = Node()
    node.core.handle(KeysChanged((NEW, OLD)), node.now)
    node.core.handle(KeysChanged((NEW,)), node.now)
    assert node.hears(key) == ["bad_mac"]
    assert node.sends_with() == {NEW}
