"""Whether a request's KV cache has room on a rank: never, not now, or now."""

from __future__ import annotations

from exoengine.model_files.kv_room import ANSWER_TOKENS, KvRoom

ROOM = KvRoom(1000 * 2**20, lambda tokens: tokens * 2**20)
"""A MiB a token."""


def test_what_can_never_fit_is_refused_with_the_sum() -> None:
    assert ROOM.refusal(900, 100) == ""
    text = ROOM.refusal(900, 200)
    assert "900 tokens of prompt and 200 of answer needs 1.07 GiB" in text
    assert "0.98 GiB" in text
    assert "lower max_tokens" in text


def test_an_answer_without_a_limit_is_counted_as_a_usual_one() -> None:
    large = KvRoom(ANSWER_TOKENS + 10, lambda tokens: tokens)
    assert large.refusal(10, 1_000_000) == ""
    assert large.refusal(11, 1_000_000)


def test_one_alone_never_waits() -> None:
    assert not ROOM.must_wait(2000 * 2**20, 0)
    assert not ROOM.must_wait(500 * 2**20, 500 * 2**20)
    assert ROOM.must_wait(501 * 2**20, 500 * 2**20)
