"""A client's request at its node: submitted until it is confirmed, each token once, and an end in any case."""

from __future__ import annotations

import pytest

from exod.core.base.errors import IllegalMoveError
from exod.core.engine.client_requests import (
    CONFIRMED_INTERVAL_S,
    KEEP_ALIVE_S,
    MAX_PENDING,
    RESUBMIT_PAUSE_S,
    SUBMIT_INTERVAL_S,
    ClientCommand,
    ClientRequests,
)
from exod.core.engine.engine_events import DeliverEnd, DeliverError, DeliverKeepAlive, DeliverToken
from exod.core.engine.engine_messages import CancelRequest, SubmitRefused, SubmitRequest
from exod.core.engine.request_queue import RETRY_AFTER_S
from exod.model import NodeId
from exoengine.protocol import Finished, GenerationRequest, RequestFailed, TokenOut
from tests.core.engine.engine_samples import only

ME = NodeId("000000000000000a")


def a_request(name: str = "r") -> GenerationRequest:
    return GenerationRequest(name, 10, prompt="x")


def token(index: int, name: str = "r") -> TokenOut:
    return TokenOut(name, index, 100 + index, f"t{index} ")


def an_end(reason: str = "stop") -> Finished:
    return Finished("r", reason, "rest", 3, 1, 2, 0.1, 0.2)  # type: ignore[arg-type]


def asked(recovery_deadline_s: float = 60.0) -> ClientRequests:
    """One request, asked for at 0."""
    clients = ClientRequests(ME, recovery_deadline_s)
    assert clients.ask(a_request(), 0.0) == [SubmitRequest(ME, a_request())]
    return clients


def hear(clients: ClientRequests, *indices: int, now: float = 1.0, name: str = "r") -> list[ClientCommand]:
    return [command for index in indices for command in clients.output(name, token(index, name), 0, now)]


def run_timers(clients: ClientRequests, trouble: str, until: float) -> list[ClientCommand]:
    """All that comes when each deadline is kept."""
    commands: list[ClientCommand] = []
    while (due := clients.next_deadline()) is not None and due <= until:
        commands += clients.handle_timer(trouble, due)
    return commands


def submissions(clients: ClientRequests, until: float) -> list[SubmitRequest]:
    return only(run_timers(clients, "", until), SubmitRequest)


def test_tokens_are_delivered_in_order_and_the_end_ends_the_request() -> None:
    clients = asked()
    assert hear(clients, 0, 1) == [DeliverToken("r", token(0)), DeliverToken("r", token(1))]
    assert clients.output("r", an_end(), 2, 2.0) == [DeliverEnd("r", an_end())]
    assert len(clients) == 0
    assert clients.leave("r") == [], "nothing is cancelled"
    assert clients.next_deadline() is None


def test_what_is_replayed_after_a_fault_is_not_said_twice_and_nothing_is_skipped() -> None:
    clients = asked()
    assert hear(clients, 0, 0, 2, 1, 0, 1, 2) == [DeliverToken("r", token(index)) for index in range(3)]


def test_a_submission_is_repeated_until_it_is_confirmed() -> None:
    clients = asked()
    assert len(submissions(clients, 2 * SUBMIT_INTERVAL_S)) == 2
    clients.queued("r", 2 * SUBMIT_INTERVAL_S)
    assert submissions(clients, 2 * SUBMIT_INTERVAL_S + CONFIRMED_INTERVAL_S - 0.01) == []


def test_a_new_coordinator_is_told_what_is_known_of_the_answer_less_its_last_token() -> None:
    clients = asked()
    hear(clients, 0, 1, 2)
    (submit,) = clients.coordinator_changed(1.0)
    assert isinstance(submit, SubmitRequest)
    assert submit.tokens == (100, 101)


def test_an_answer_that_stopped_coming_is_submitted_again() -> None:
    clients = asked()
    hear(clients, 0, now=0.5)
    assert len(submissions(clients, 0.5 + CONFIRMED_INTERVAL_S)) == 1


def test_a_client_that_goes_away_ends_its_generation() -> None:
    clients = asked()
    hear(clients, 0)
    assert clients.leave("r") == [CancelRequest("r")]
    assert not clients.waits_for("r")
    assert hear(clients, 1) == [], "too late, and harmless"


def test_a_refusal_reaches_the_client_with_the_time_to_come_again_and_cancels_nothing() -> None:
    clients = asked()
    refusal = SubmitRefused("r", "queue_full", "come again", 10.0)
    assert clients.refused(refusal) == [DeliverError("r", "queue_full", "come again", 10.0)]
    assert len(clients) == 0


def test_a_failure_reaches_the_client_and_cancels_nothing() -> None:
    clients = asked()
    failure = RequestFailed("r", "context_length_exceeded", "too long")
    assert clients.output("r", failure, 0, 1.0) == [DeliverError("r", "context_length_exceeded", "too long")]
    assert len(clients) == 0


def test_an_engine_in_trouble_ends_the_request_at_the_deadline_with_the_reason() -> None:
    clients = asked(recovery_deadline_s=20.0)
    commands = run_timers(clients, "the rank of b is loading", 100.0)
    assert set(only(commands, DeliverKeepAlive)) == {DeliverKeepAlive("r", "the rank of b is loading")}
    text = "the engine did not recover within 20 s: the rank of b is loading"
    assert commands[-2:] == [DeliverError("r", "recovery_failed", text), CancelRequest("r")]
    assert len(clients) == 0


def test_the_deadline_of_an_engine_in_trouble_is_kept() -> None:
    clients = asked(recovery_deadline_s=20.0)
    assert only(run_timers(clients, "a rank crashed", 19.9), DeliverError) == []
    assert len(only(run_timers(clients, "a rank crashed", 20.1), DeliverError)) == 1


def test_a_token_begins_the_deadline_anew() -> None:
    clients = asked(recovery_deadline_s=20.0)
    run_timers(clients, "a rank crashed", 19.0)
    hear(clients, 0, now=19.0)
    assert only(run_timers(clients, "a rank crashed", 38.9), DeliverError) == []
    assert len(only(run_timers(clients, "a rank crashed", 39.1), DeliverError)) == 1


def test_good_moments_without_a_token_do_not_put_the_deadline_off() -> None:
    clients = asked(recovery_deadline_s=20.0)
    commands: list[ClientCommand] = []
    for beat in range(1, 20):
        clients.queued("r", beat * KEEP_ALIVE_S)
        commands += clients.handle_timer("a rank crashed" if beat % 2 else "", beat * KEEP_ALIVE_S)
    assert [error.code for error in only(commands, DeliverError)] == ["recovery_failed"]


def test_waiting_ones_turn_has_no_deadline() -> None:
    clients = asked(recovery_deadline_s=20.0)
    clients.queued("r", 0.0)
    commands = run_timers(clients, "", 1000.0)
    assert len(only(commands, DeliverKeepAlive)) >= 10
    assert set(only(commands, DeliverKeepAlive)) == {DeliverKeepAlive("r", "the request waits its turn")}
    assert only(commands, DeliverError) == []


def test_a_long_prompt_that_is_computed_does_not_wait_its_turn() -> None:
    clients = asked()
    clients.queued("r", 0.0)
    commands = clients.handle_timer("", KEEP_ALIVE_S, {"r"})
    assert only(commands, DeliverKeepAlive) == [DeliverKeepAlive("r", "the prompt is computed")]
    hear(clients, 0, now=6.0)
    commands = clients.handle_timer("", 6.0 + KEEP_ALIVE_S, {"r"})
    assert only(commands, DeliverKeepAlive) == [DeliverKeepAlive("r", "the next token is computed")]


def test_a_coordinator_that_does_not_answer_is_trouble() -> None:
    clients = asked()
    text = "the coordinator has not answered yet"
    assert set(only(run_timers(clients, "", 6.0), DeliverKeepAlive)) == {DeliverKeepAlive("r", text)}


def test_a_client_that_does_not_read_is_given_up() -> None:
    clients = asked()
    text = "the client stopped reading; the generation was cancelled"
    assert clients.stopped_reading("r") == [DeliverError("r", "client_too_slow", text), CancelRequest("r")]
    assert clients.stopped_reading("r") == []


def test_too_many_requests_are_refused_with_the_time_to_come_again() -> None:
    clients = ClientRequests(ME, 60.0)
    for number in range(MAX_PENDING):
        clients.ask(a_request(f"r{number}"), 0.0)
    (refused,) = clients.ask(a_request("one more"), 0.0)
    assert isinstance(refused, DeliverError)
    assert (refused.request_id, refused.code) == ("one more", "queue_full")
    assert refused.retry_after_s == RETRY_AFTER_S
    assert len(clients) == MAX_PENDING


def test_an_id_that_is_given_twice_is_a_bug() -> None:
    with pytest.raises(IllegalMoveError):
        asked().ask(a_request(), 1.0)


def test_another_model_ends_what_was_begun_and_begins_what_was_not() -> None:
    clients = asked()
    clients.ask(a_request("waiting"), 0.0)
    hear(clients, 0, now=0.5)
    text = "other was loaded while this was answered"
    assert clients.model_changed("other", 1.0) == [DeliverError("r", "model_changed", text)]
    (submit,) = submissions(clients, 1.0)
    assert submit.request.request_id == "waiting"
    assert hear(clients, 0, name="waiting") == [DeliverToken("waiting", token(0, "waiting"))]


def test_an_end_before_which_tokens_were_lost_is_not_taken_for_the_end() -> None:
    clients = asked()
    hear(clients, 0)
    assert clients.output("r", an_end(), 3, 2.0) == []
    assert len(submissions(clients, 2.0)) == 1, "what is missing is asked for at once"
    hear(clients, 1, 2, now=2.1)
    assert clients.output("r", an_end(), 3, 2.2) == [DeliverEnd("r", an_end())]


def test_an_end_that_counts_more_tokens_than_the_client_has_is_not_its_end() -> None:
    """From this node's own rank, which caught up with the others while its daemon heard nothing of the tokens."""
    clients = asked()
    assert hear(clients, 0) == [DeliverToken("r", token(0))]
    assert clients.output("r", an_end(), 0, 2.0) == []
    assert clients.waits_for("r")
    assert len(submissions(clients, 2.0)) == 1, "what is missing is asked for at once"
    hear(clients, 1)
    assert clients.output("r", an_end(), 0, 3.0) == [DeliverEnd("r", an_end())]


def test_many_outputs_after_a_lost_one_ask_once_for_what_is_missing() -> None:
    clients = asked()
    hear(clients, 0)
    for index in range(2, 100):
        now = 2.0 + index / 1000
        assert clients.output("r", token(index), index, now) == []
        run_timers(clients, "", now)
    assert len(submissions(clients, 2.0 + RESUBMIT_PAUSE_S + 0.1)) <= 1


def test_a_generation_that_others_cancelled_is_asked_for_again() -> None:
    clients = asked()
    hear(clients, 0)
    assert clients.output("r", an_end("cancelled"), 1, 2.0) == []
    assert len(submissions(clients, 2.0)) == 1


def test_where_no_rank_can_serve_what_has_no_token_is_refused_once_that_lasts() -> None:
    clients = asked()
    clients.queued("r", 0.0)
    failure = "its worker ended 3 times"
    (kept,) = only(clients.handle_timer(failure, KEEP_ALIVE_S, failure=failure), DeliverKeepAlive)
    assert kept.text == failure, "the others may go on without that rank in a moment"
    clients.handle_timer("", 2 * KEEP_ALIVE_S)
    assert clients.waits_for("r"), "they did"
    clients.handle_timer(failure, 3 * KEEP_ALIVE_S, failure=failure)
    (refused,) = only(clients.handle_timer(failure, 4 * KEEP_ALIVE_S, failure=failure), DeliverError)
    assert (refused.code, refused.text) == ("not_ready", failure)


def test_an_answer_that_was_begun_waits_until_its_deadline_where_no_rank_can_serve() -> None:
    clients = asked()
    clients.output("r", token(0), 0, 0.0)
    for judged in range(1, 12):
        assert not only(clients.handle_timer("x", judged * KEEP_ALIVE_S, failure="x"), DeliverError)
