"""Several requests at once: their steps are under way together, nobody waits long, each answer stays its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exoengine.protocol import Begin, Cancel, Finished, GenerationRequest, Serving, SyncSettings, TokenOut
from tests.engine.driver import GENEROUS_S, Answer, Cluster, cluster, request
from tests.engine.models import LLAMA, undisturbed, write_model

PROMPT = [7 * index % 250 for index in range(700)]

SLOW = """
import time
from exoengine.generate.pipeline import Pipeline
send, draw = Pipeline._send, Pipeline._draw
def slow_send(self, hidden, *args):
    time.sleep(0.05 if hidden.shape[1] > 1 else 0.03)
    return send(self, hidden, *args)
def slow_draw(self, passing, step, *args):
    time.sleep(0.05 if step.count > 1 else 0.03)
    return draw(self, passing, step, *args)
Pipeline._send, Pipeline._draw = slow_send, slow_draw
"""
"""Stages that take their time as with large models, while no core is busy: any machine shows how steps overlap."""

SAFE = SyncSettings(sync="safe")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slow"), 2, prelude=SLOW) as made:
        yield made


@pytest.fixture
def ranks(trio: Cluster, llama: Path) -> Cluster:
    trio.load(llama, [2, 2, 1], serving=Serving(4))
    trio.form()
    return trio


def order_of_tokens(seen: list[object]) -> list[str]:
    return [said.request_id for said in seen if isinstance(said, TokenOut)]


def finish_all(ranks: Cluster, begun: list[Begin]) -> list[Answer]:
    """The answers, which every rank must have told alike."""
    until = time.monotonic() + GENEROUS_S
    wanted = [begin.request.request_id for begin in begun]
    loaded = ranks.ranks[: len(ranks.loads)]
    while True:
        found = [[Answer(rank.seen, one) for rank in loaded] for one in wanted]
        if all(answer.finished is not None for answers in found for answer in answers):
            break
        assert time.monotonic() < until, [rank.last_said() for rank in loaded]
        time.sleep(0.005)
    for answers in found:
        assert all(answer.tokens == answers[0].tokens for answer in answers)
    return [answers[0] for answers in found]


@pytest.mark.parametrize("split", [[5], [2, 3], [2, 2, 1]])
def test_answers_that_come_together_are_those_that_come_alone(trio: Cluster, llama: Path, split: list[int]) -> None:
    trio.load(llama, split, serving=Serving(4))
    trio.form()
    first = len(trio.ranks[0].seen)
    asked = [request([number, *PROMPT[: 20 * number + 5]], 40, temperature=1.0, seed=number) for number in range(7)]
    answers = finish_all(trio, [trio.begin(one) for one in asked])
    for one, answer in zip(asked, answers, strict=True):
        assert isinstance(one.prompt, tuple)
        assert answer.tokens == undisturbed(llama, one.prompt, 40, one.sampling)
    order = order_of_tokens(list(trio.ranks[0].seen[first:]))
    assert len(set(order[: order.index(order[0], 8)])) > 1, "each came after the other"


def test_no_more_are_open_than_are_allowed(ranks: Cluster) -> None:
    seen = len(ranks.ranks[0].seen)
    begun = [ranks.begin(request([number, 1, 2], 30)) for number in range(6)]
    finish_all(ranks, begun)
    going: set[str] = set()
    for said in ranks.ranks[0].seen[seen:]:
        if isinstance(said, TokenOut):
            going.add(said.request_id)
            assert len(going) <= 4
        elif isinstance(said, Finished):
            going.discard(said.request_id)


def took(ranks: Cluster, asked: list[GenerationRequest]) -> float:
    begun = time.monotonic()
    finish_all(ranks, [ranks.begin(one) for one in asked])
    return time.monotonic() - begun


def test_two_answers_keep_both_stages_at_work(slow: Cluster, llama: Path) -> None:
    """One answer alone has one stage at work at a time."""
    slow.load(llama, [2, 3], SAFE)
    slow.form()
    took(slow, [request([9, 9], 10)])  # what is compiled once is compiled
    alone = took(slow, [request([1, 2, 3], 50)])
    together = took(slow, [request([number, 4, 5], 50) for number in range(2)])
    assert together < 1.6 * alone  # twice, one after the other


def test_a_long_prompt_holds_up_an_answer_by_two_chunks_at_most(slow: Cluster, llama: Path) -> None:
    slow.load(llama, [2, 3], SAFE)
    slow.form()
    running = slow.begin(request([1, 2, 3], 80))
    slow.ranks[0].expect(
        TokenOut, where=lambda said: (said.request_id, said.index) == (running.request.request_id, 20)
    )
    prompt = [*PROMPT, *PROMPT]
    long = slow.begin(request(prompt, 1))
    slow.ranks[0].expect(TokenOut, where=lambda said: said.request_id == long.request.request_id)
    finish_all(slow, [running, long])
    order = order_of_tokens(slow.ranks[0].seen)
    before_its_first = order.index(long.request.request_id)
    beside = order[:before_its_first].count(running.request.request_id) - 21
    chunks = -(-len(prompt) // 128)
    assert beside >= chunks - 1  # at least a token between two chunks


def test_an_answer_that_is_cancelled_leaves_the_others_alone(ranks: Cluster, llama: Path) -> None:
    asked = [request([number, *PROMPT[:50]], 120, temperature=1.0, seed=number) for number in range(4)]
    begun = [ranks.begin(one) for one in asked]
    waiting = ranks.begin(request([8, 8, 8], 5))
    ranks.ranks[0].expect(TokenOut, where=lambda said: (said.request_id, said.index) == (asked[2].request_id, 10))
    ranks.ranks[1].send(Cancel(asked[2].request_id))
    answers = finish_all(ranks, [*begun, waiting])
    for one, answer in zip(asked, answers, strict=False):
        assert isinstance(one.prompt, tuple)
        expected = undisturbed(llama, one.prompt, 120, one.sampling)
        assert answer.tokens == expected[: len(answer.tokens)]
        assert (len(answer.tokens) < 120) == (one is asked[2])
    ended = [said.request_id for said in ranks.ranks[0].seen if isinstance(said, Finished)]
    assert ended.index(waiting.request.request_id) < ended.index(asked[3].request_id), "its place was not given on"


def test_conversations_in_turn_find_what_they_share(ranks: Cluster, llama: Path) -> None:
    system, a, b = PROMPT[:100], [3, 1, 4], [2, 7, 1, 8]
    cached = []
    turns = []
    for question in (a, b):
        turn = [*system, *question]
        answer = ranks.generate(request(turn, 30))
        assert answer.finished is not None
        cached.append(answer.finished.cached_tokens)
        turns.append([*turn, *answer.tokens])
    again = [*turns[0], 5, 9]
    answer = ranks.generate(request(again, 30))
    assert answer.finished is not None
    assert cached == [0, len(system)]
    assert answer.finished.cached_tokens == len(turns[0]) - 1
    assert answer.tokens == undisturbed(llama, again, 30)


def test_a_prompt_that_begins_like_a_running_one_goes_on_from_it(ranks: Cluster, llama: Path) -> None:
    running = ranks.begin(request(PROMPT, 80))
    ranks.ranks[0].expect(TokenOut, where=lambda said: said.request_id == running.request.request_id)
    beside = [*PROMPT[:600], 1, 2, 3]
    begun = ranks.begin(request(beside, 20))
    alike, other = finish_all(ranks, [running, begun])
    assert other.finished is not None
    assert other.finished.cached_tokens == 512
    assert other.tokens == undisturbed(llama, beside, 20)
    assert alike.tokens == undisturbed(llama, PROMPT, 80)


def test_what_is_kept_of_finished_requests_is_bounded(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", LLAMA)
    with cluster(tmp_path, 1) as single:
        for limit, found in (("25%", 639), ("0", 0), ("1KiB", 0), ("10MiB", 639)):
            single.load(folder, [5], SyncSettings(), serving=Serving(prompt_cache=limit))
            single.form()
            single.generate(request(PROMPT[:640], 2))
            answer = single.generate(request(PROMPT[:640], 2))
            assert answer.finished is not None
            assert answer.finished.cached_tokens == found
