"""What is remembered of peers is a hint: damage in it costs the hint alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from exod.peers.peer_addresses import FILE, KEPT_S, PeerBook
from tests.core.pair.cards import card


def test_a_bad_byte_in_a_remembered_peer_costs_the_memory_and_not_the_start(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"0000000000000001":{"name":"\xff"}}')
    assert PeerBook(tmp_path).entries() == []


def test_a_peer_that_stays_connected_for_months_is_still_known_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    peer, book = card(1, "bridge0=10.0.0.2/24"), PeerBook(tmp_path)
    book.note(peer)
    for _ in range(100):
        now += 86_400.0
        book.note_again(peer.id)
    assert [one.addresses for one in PeerBook(tmp_path).entries()] == [("10.0.0.2",)]
    now += KEPT_S + 1
    assert PeerBook(tmp_path).entries() == []
