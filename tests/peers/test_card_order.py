"""A peer's newest card counts, whichever connection brings the older one later."""

from __future__ import annotations

import msgspec

from exod.peers.connection import CardOrder
from tests.core.pair.cards import card

FIT = card(1)
UNFIT = msgspec.structs.replace(FIT, unfit="a file is missing")


def test_what_a_slow_connection_brings_late_is_no_news() -> None:
    order = CardOrder()
    assert order.is_news(FIT, 1)
    assert order.is_news(UNFIT, 2)
    assert not order.is_news(FIT, 1)
    assert order.is_news(UNFIT, 2), "the same one over another connection"


def test_another_life_begins_anew_and_another_peer_counts_by_itself() -> None:
    order = CardOrder()
    assert order.is_news(FIT, 7)
    assert order.is_news(msgspec.structs.replace(FIT, incarnation=FIT.incarnation + 1), 1)
    assert order.is_news(card(2), 1)


def test_a_daemon_that_numbers_no_card_is_believed() -> None:
    order = CardOrder()
    for one in (FIT, UNFIT, FIT):
        assert order.is_news(one, 0)
