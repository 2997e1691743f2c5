"""Requests whose KV caches do not fit beside each other wait for each other; one that never fits is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exoengine.protocol import Abort, Aborted, Cancel, Finished, RequestFailed, Serving, TokenOut
from tests.engine.driver import GENEROUS_S, Cluster, cluster, request
from tests.engine.generate.test_many_requests import finish_all
from tests.engine.models import undisturbed

LITTLE = """
import psutil
from exoengine.model import loading
from exoengine.model_files import kv_room
from exoengine.generate.pipeline import Pipeline
made = loading._kv_room
loading._kv_room = lambda *args: kv_room.KvRoom(200, lambda tokens: tokens)
run = Pipeline.run
def slow(self, *args):
    import time
    time.sleep(0.004)
    return run(self, *args)
Pipeline.run = slow
"""
"""Each rank has room for 200 tokens."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("little"), 2, prelude=LITTLE) as made:
        yield made


def loaded(ranks: Cluster, folder: Path, split: list[int]) -> None:
    ranks.load(folder, split, serving=Serving(6))
    ranks.form()


@pytest.mark.parametrize("split", [[5], [2, 3]])
def test_what_does_not_fit_now_waits_and_keeps_its_turn(ranks: Cluster, llama: Path, split: list[int]) -> None:
    loaded(ranks, llama, split)
    seen = len(ranks.ranks[0].seen)
    # 90 tokens each: two fit, a third does not, and the small one behind it does not overtake it.
    wanted = [request([number] * 50, 40) for number in range(1, 5)] + [request([9] * 5, 5)]
    answers = finish_all(ranks, [ranks.begin(one) for one in wanted])
    for one, answer in zip(wanted, answers, strict=True):
        assert isinstance(one.prompt, tuple)
        assert answer.tokens == undisturbed(llama, one.prompt, one.max_tokens)
    going: set[str] = set()
    first: list[str] = []
    for said in ranks.ranks[0].seen[seen:]:
        if isinstance(said, TokenOut):
            if said.index == 0:
                first.append(said.request_id)
            going.add(said.request_id)
            assert len(going) <= 3
            assert sum(90 for one in wanted[:4] if one.request_id in going) <= 180
        elif isinstance(said, Finished):
            going.discard(said.request_id)
    assert first.index(wanted[4].request_id) == 4


def test_what_can_never_fit_is_refused_and_the_others_go_on(ranks: Cluster, llama: Path) -> None:
    loaded(ranks, llama, [2, 3])
    fits = ranks.begin(request([3] * 50, 40))
    large = ranks.begin(request([4] * 150, 60))
    for rank in ranks.ranks:
        told = rank.expect(RequestFailed)
        assert (told.request_id, told.code) == (large.request.request_id, "context_length_exceeded")
        assert "150 tokens of prompt and 60 of answer" in told.text
    assert finish_all(ranks, [fits])[0].tokens == undisturbed(llama, [3] * 50, 40)


def test_one_that_waits_lives_through_a_cut_and_can_be_cancelled(ranks: Cluster, llama: Path) -> None:
    loaded(ranks, llama, [2, 3])
    running, waiting, given_up = (ranks.begin(request([number] * 80, 60)) for number in range(1, 4))
    ranks.ranks[0].expect(TokenOut, where=lambda said: said.index >= 5)
    ranks.ranks[1].send(Cancel(given_up.request.request_id))
    ranks.ranks[0].send(Cancel(given_up.request.request_id))
    ranks.ranks[0].send(Abort("the test cuts a link"))
    for rank in ranks.ranks:
        rank.expect(Aborted)
    ranks.form()
    answers = finish_all(ranks, [running, waiting, given_up])
    assert [len(answer.tokens) for answer in answers] == [60, 60, 0]
    until = time.monotonic() + GENEROUS_S
    while not any(isinstance(said, Finished) and said.reason == "cancelled" for said in ranks.ranks[1].seen):
        assert time.monotonic() < until
        time.sleep(0.01)
