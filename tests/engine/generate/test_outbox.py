"""When a rank tells the daemon."""

from __future__ import annotations

from exoengine.generate.outbox import Outbox
from exoengine.protocol import FromWorker, RequestFailed, TokenOut


def token(index: int) -> TokenOut:
    return TokenOut("q", index, 7, "x", None, ())


def test_tokens_wait_until_they_are_let_out_and_go_in_order() -> None:
    told: list[FromWorker] = []
    outbox = Outbox(told.extend)
    outbox.add(token(0))
    outbox.add(token(1))
    assert told == []
    outbox.flush()
    outbox.flush()
    assert told == [token(0), token(1)]


def test_what_ends_a_request_lets_out_what_came_before() -> None:
    told: list[FromWorker] = []
    outbox = Outbox(told.extend)
    outbox.add(token(0))
    outbox.add(RequestFailed("q", "engine", "why"))
    assert told == [token(0), RequestFailed("q", "engine", "why")]
