"""What is remembered of peers is a hint: damage in it costs the hint alone."""

from __future__ import annotations

from pathlib import Path

from exod.peers.peer_addresses import FILE, PeerBook


def test_a_bad_byte_in_a_remembered_peer_costs_the_memory_and_not_the_start(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"0000000000000001":{"name":"\xff"}}')
    assert PeerBook(tmp_path).entries() == []
