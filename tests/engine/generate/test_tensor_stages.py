"""Tensor groups as the stages of a pipeline, two by two: an answer lives through what befalls any of the four."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exoengine.protocol import (
    Abort,
    Aborted,
    Begin,
    Heartbeat,
    Loaded,
    LoadFailed,
    Sampling,
    SyncSettings,
    TokenOut,
)
from tests.engine.driver import Answer, Cluster, cluster, request
from tests.engine.models import undisturbed

PROMPT = list(range(5, 45))
STEPS = 200
SAMPLED = Sampling(temperature=1.0, seed=9)
SPANS = (0, 2), (2, 5)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("stages"), 4) as made:
        yield made


def loaded(ranks: Cluster, folder: Path, sync: str = "dynamic") -> None:
    settings = SyncSettings(sync=sync)  # type: ignore[arg-type]
    for said in ranks.load_stages(folder, SPANS, 2, settings):
        assert isinstance(said, Loaded), said
    ranks.form()


def test_tokens_are_those_of_one_process(ranks: Cluster, llama: Path) -> None:
    """Also where fast steps are asked for: there are none."""
    loaded(ranks, llama, "fast")
    assert ranks.generate(request(PROMPT, 64)).tokens == undisturbed(llama, PROMPT, 64)
    sampled = ranks.generate(request(PROMPT, 64, temperature=1.0, seed=9))
    assert sampled.tokens == undisturbed(llama, PROMPT, 64, SAMPLED)
    beat = ranks.ranks[0].expect(Heartbeat, where=lambda said: said.state == "ready")
    assert beat.sync_mode == "safe"
    assert "tensor group" in beat.sync_reason


def test_two_requests_at_once_give_their_own_tokens(ranks: Cluster, llama: Path) -> None:
    loaded(ranks, llama)
    one, other = ranks.begin(request(PROMPT, 40)), ranks.begin(request(PROMPT[::-1], 40))
    for begin, prompt in ((one, PROMPT), (other, PROMPT[::-1])):
        answer = ranks.finish(begin.request.request_id)[0]
        assert isinstance(answer, Answer)
        assert answer.tokens == undisturbed(llama, prompt, 40)


def started(ranks: Cluster, folder: Path) -> Begin:
    loaded(ranks, folder)
    begin = ranks.begin(request(PROMPT, STEPS, temperature=1.0, seed=9))
    wanted = begin.request.request_id
    ranks.ranks[0].expect(TokenOut, where=lambda said: said.request_id == wanted and said.index >= 20)
    return begin


def finished(ranks: Cluster, begin: Begin, folder: Path) -> None:
    expected = undisturbed(folder, PROMPT, STEPS, SAMPLED)
    for answer in ranks.finish(begin.request.request_id):
        assert isinstance(answer, Answer), answer
        assert answer.tokens == expected[answer.outs[0].index :]


def test_a_cut_is_a_step_that_is_run_again(ranks: Cluster, llama: Path) -> None:
    begin = started(ranks, llama)
    ranks.ranks[1].send(Abort("the link is dead"))
    for rank in ranks.ranks:
        rank.expect(Aborted)
    ranks.form()
    finished(ranks, begin, llama)


@pytest.mark.parametrize("victim", [1, 2])
def test_a_replaced_rank_makes_all_prefill_the_sequence_again(ranks: Cluster, llama: Path, victim: int) -> None:
    begin = started(ranks, llama)
    ranks.ranks[victim].kill()
    for number, rank in enumerate(ranks.ranks):
        if number != victim:
            rank.expect(Aborted)
    ranks.ranks[victim].close()
    ranks.ranks[victim] = ranks.start()
    ranks.ranks[victim].send(ranks.loads[victim])
    assert isinstance(ranks.ranks[victim].expect(Loaded, LoadFailed), Loaded)
    ranks.ranks[victim].send(begin)
    ranks.form()
    finished(ranks, begin, llama)


def test_a_long_prompt_goes_in_chunks(ranks: Cluster, llama: Path) -> None:
    loaded(ranks, llama)
    prompt = [5 + index % 90 for index in range(900)]
    assert ranks.generate(request(prompt, 8)).tokens == undisturbed(llama, prompt, 8)
