"""What a worker tells the daemon that adopts it of a request under way."""

from __future__ import annotations

from exoengine.process.control_thread import RequestLog
from exoengine.protocol import Begin, GenerationRequest, TokenOut

REQUEST = GenerationRequest("r~1", 10, prompt="x")


def test_a_half_answer_that_it_was_begun_with_is_told_with_the_rest() -> None:
    log = RequestLog(Begin(1, REQUEST, (7, 8)))
    log.messages.append(TokenOut("r~1", 2, 9, "nine"))
    assert log.active.tokens == (7, 8, 9)


def test_a_request_from_its_start_is_told_as_it_came() -> None:
    log = RequestLog(Begin(1, REQUEST, ()))
    log.messages += [TokenOut("r~1", 0, 7, "seven"), TokenOut("r~1", 1, 8, "eight")]
    assert log.active.tokens == (7, 8)
