"""Answers that decode at the same time go through in one pass; each lives through what befalls it or the others."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from exoengine.embedded import model_folder
from exoengine.protocol import (
    Abort,
    Aborted,
    Begin,
    Cancel,
    ChatMessage,
    Finished,
    GenerationRequest,
    Heartbeat,
    Loaded,
    Serving,
    SyncSettings,
    TokenOut,
)  # fmt: skip
from tests.engine.architectures import EXPERTS, HYBRID, SLIDING
from tests.engine.driver import Answer, Cluster, Rank, cluster, request
from tests.engine.generate.test_many_requests import finish_all
from tests.engine.models import LLAMA, undisturbed, write_model

PROMPT = [7 * index % 250 for index in range(700)]
STEPS = 60

SIZES_ARE_NOTED = """
import os, time
from pathlib import Path
from exoengine.generate.pipeline import Pipeline
run = Pipeline.run
def noted(self, step, tokens, *args):
    if step.singly:
        with (Path({folder!r}) / f"sizes{{self._rank}}").open("a") as out:
            print(len(tokens), file=out)
        time.sleep(0.004)
    return run(self, step, tokens, *args)
Pipeline.run = noted
begin = Pipeline.run_ahead
def begun(self, safe, caches):
    if hasattr(caches, "members"):
        with (Path({folder!r}) / "ahead").open("a") as out:
            print(len(caches.members), file=out)
    return begin(self, safe, caches)
Pipeline.run_ahead = begun
"""
"""Each step takes a while, so that a test that disturbs an answer comes in time."""

FAILS_IN_BATCHES = """
from exoengine.generate.step_runner import StepRunner
from exoengine.generate.pipeline import Pipeline
run = Pipeline.run
def failing(self, step, tokens, *args):
    if step.singly and any(one == [13] for one in map(list, tokens)) and self._rank == 1:
        raise RuntimeError("the test fails what runs token 13")
    return run(self, step, tokens, *args)
Pipeline.run = failing
"""


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sizes")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, notes: Path) -> Iterator[Cluster]:
    prelude = SIZES_ARE_NOTED.format(folder=str(notes))
    with cluster(tmp_path_factory.mktemp("batches"), 2, prelude=prelude) as made:
        yield made


def sizes(notes: Path, rank: int = 0) -> list[int]:
    """Of the steps that a rank has run since this was asked last."""
    file = notes / f"sizes{rank}"
    found = [int(line) for line in file.read_text().split()] if file.exists() else []
    file.write_text("")
    return found


def asked(count: int, steps: int = STEPS, first: int = 0) -> list[GenerationRequest]:
    """Of different lengths, some greedy and some sampled."""
    return [
        request([number, *PROMPT[: 17 * number + 5]], steps, temperature=float(number % 2), seed=number)
        for number in range(first, first + count)
    ]


def right(folder: Path, one: GenerationRequest, answer: Answer, **known: int) -> bool:
    assert isinstance(one.prompt, tuple)
    first = answer.outs[0].index
    return answer.tokens == undisturbed(folder, one.prompt, one.max_tokens, one.sampling, **known)[first:]


def counts_right(answer: Answer, first: int, last: int) -> bool:
    return answer.text.split() == [str(number) for number in range(first, last + 1)]


def settled(said: Heartbeat) -> bool:
    """Nothing is open, and something was answered."""
    return said.figures.kv_bytes == 0 and said.figures.prompt_cache_bytes > 0


def at_token(rank: Rank, begin: Begin, index: int) -> None:
    wanted = begin.request.request_id
    rank.expect(TokenOut, where=lambda said: said.request_id == wanted and said.index >= index)


@pytest.mark.parametrize(("split", "largest"), [([5], 6), ([2, 3], 3)])
def test_as_many_groups_decode_as_there_are_stages(
    ranks: Cluster, notes: Path, llama: Path, split: list[int], largest: int
) -> None:
    ranks.load(llama, split, serving=Serving(6))
    ranks.form()
    sizes(notes)
    wanted = asked(6)
    answers = finish_all(ranks, [ranks.begin(one) for one in wanted])
    assert all(right(llama, one, answer) for one, answer in zip(wanted, answers, strict=True))
    figures = ranks.ranks[0].expect(Heartbeat, where=settled).figures
    assert figures.sequences > 1.5 * figures.passes > 0
    assert figures.prefill_passes > 0
    assert figures.stage_s > 0
    assert figures.prompt_cache_bytes > 0
    found = sizes(notes)
    assert max(found) == largest
    assert found.count(largest) > STEPS / 2


def test_two_answers_are_two_groups(ranks: Cluster, notes: Path, llama: Path) -> None:
    ranks.load(llama, [2, 3], serving=Serving(6))
    ranks.form()
    sizes(notes)
    wanted = asked(2)
    answers = finish_all(ranks, [ranks.begin(one) for one in wanted])
    assert all(right(llama, one, answer) for one, answer in zip(wanted, answers, strict=True))
    assert set(sizes(notes)) == {1}


def test_a_tensor_group_runs_them_all_in_one(ranks: Cluster, notes: Path, llama: Path) -> None:
    ranks.load_parts(llama, 2, 5, serving=Serving(6))
    ranks.form()
    sizes(notes, 0), sizes(notes, 1)
    wanted = asked(5)
    begun = [ranks.begin(one) for one in wanted]
    at_token(ranks.ranks[0], begun[2], 10)
    ranks.ranks[1].send(Abort("the test cuts a link"))
    for rank in ranks.ranks:
        rank.expect(Aborted)
    ranks.form()
    answers = finish_all(ranks, begun)
    assert all(right(llama, one, answer) for one, answer in zip(wanted, answers, strict=True))
    assert max(sizes(notes, 0)) == max(sizes(notes, 1)) == 5


@pytest.mark.parametrize(
    "config", [SLIDING[0], HYBRID[0], EXPERTS[6]], ids=lambda config: str(config["model_type"])
)
def test_unusual_caches_go_through_in_batches_and_survive_a_cut(
    ranks: Cluster, notes: Path, tmp_path: Path, config: dict[str, object]
) -> None:
    folder = write_model(tmp_path / "model", config)
    assert all(isinstance(said, Loaded) for said in ranks.load(folder, [2, 2], serving=Serving(6)))
    ranks.form()
    sizes(notes)
    wanted = asked(4)
    begun = [ranks.begin(one) for one in wanted]
    for victim, index in ((0, 12), (1, 30)):
        at_token(ranks.ranks[0], begun[1], index)
        ranks.ranks[victim].send(Abort("the test cuts a link"))
        for rank in ranks.ranks:
            rank.expect(Aborted)
        ranks.form()
    answers = finish_all(ranks, begun)
    assert all(right(folder, one, answer) for one, answer in zip(wanted, answers, strict=True))
    assert 2 in sizes(notes)


def test_a_quantised_cache_goes_sequence_by_sequence(ranks: Cluster, notes: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", {**LLAMA, "head_dim": 64})
    ranks.load(folder, [2, 3], serving=Serving(6), kv_bits=8)
    ranks.form()
    sizes(notes)
    wanted = asked(5)
    answers = finish_all(ranks, [ranks.begin(one) for one in wanted])
    assert all(right(folder, one, answer, kv_bits=8) for one, answer in zip(wanted, answers, strict=True))
    assert set(sizes(notes)) == {1}


@pytest.mark.parametrize("sync", ["fast", "safe", "dynamic"])
def test_sequences_join_and_leave_while_links_are_cut(ranks: Cluster, notes: Path, llama: Path, sync: str) -> None:
    ranks.load(llama, [2, 3], SyncSettings(sync=sync), serving=Serving(5))  # type: ignore[arg-type]
    ranks.form()
    sizes(notes)
    wanted = [*asked(4, 30), *asked(4, 90, first=4), *asked(3, 10, first=8)]
    begun = [ranks.begin(one) for one in wanted]
    for victim, (number, index) in enumerate(((1, 8), (4, 20), (6, 40), (7, 70))):
        at_token(ranks.ranks[0], begun[number], index)
        ranks.ranks[victim % 2].send(Abort("the test cuts a link"))
        for rank in ranks.ranks:
            rank.expect(Aborted)
        ranks.form()
    answers = finish_all(ranks, begun)
    assert all(right(llama, one, answer) for one, answer in zip(wanted, answers, strict=True))
    assert max(sizes(notes)) >= 2


@pytest.mark.parametrize("parts", [1, 2])
def test_the_demo_model_counts_right_in_batches_over_faults(ranks: Cluster, notes: Path, parts: int) -> None:
    """Its margins are wide, so no rounding of a batch may show: every answer must be the right one."""
    folder = model_folder("embedded:count")
    said = (
        ranks.load_parts(folder, 2, 8, serving=Serving(6))
        if parts == 2
        else ranks.load(folder, [4, 4], serving=Serving(6))
    )
    assert all(isinstance(one, Loaded) for one in said), said
    ranks.form()
    sizes(notes)
    pairs = [(number, number + 40 + 3 * number) for number in range(1, 8)]
    wanted = [
        GenerationRequest(
            f"count{parts}-{first}", 400, messages=(ChatMessage("user", f"count from {first} to {last}"),)
        )
        for first, last in pairs
    ]
    begun = [ranks.begin(one) for one in wanted]
    for victim, (number, index) in enumerate(((1, 5), (4, 20), (5, 40))):
        at_token(ranks.ranks[0], begun[number], index)
        ranks.ranks[victim % 2].send(Abort("the test cuts a link"))
        for rank in ranks.ranks:
            rank.expect(Aborted)
        ranks.form()
    answers = finish_all(ranks, begun)
    assert all(counts_right(answer, *pair) for answer, pair in zip(answers, pairs, strict=True))
    assert max(sizes(notes)) >= 3


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_replaced_in_mid_batch_runs_its_part_again(ranks: Cluster, llama: Path, victim: int) -> None:
    ranks.load(llama, [2, 3], serving=Serving(6))
    ranks.form()
    wanted = asked(5)
    begun = [ranks.begin(one) for one in wanted]
    at_token(ranks.ranks[1 - victim], begun[4], 20)
    replayed_before = ranks.ranks[1 - victim].expect(Heartbeat).replayed_tokens
    ranks.ranks[victim].kill(signal.SIGKILL)
    ranks.ranks[1 - victim].expect(Aborted)
    ranks.ranks[victim].close()
    ranks.ranks[victim] = ranks.start()
    ranks.ranks[victim].send(ranks.loads[victim])
    ranks.ranks[victim].expect(Loaded)
    for begin in begun:
        ranks.ranks[victim].send(begin)
    ranks.form()
    answers = finish_all(ranks, begun)
    assert all(right(llama, one, answer) for one, answer in zip(wanted, answers, strict=True))
    replayed = ranks.ranks[1 - victim].expect(Heartbeat).replayed_tokens - replayed_before
    assert replayed <= len(wanted), "who kept its caches ran a step of each again at most"


def test_one_that_is_cancelled_within_a_step_leaves_the_others_alone(ranks: Cluster, llama: Path) -> None:
    ranks.load(llama, [2, 3], serving=Serving(6))
    ranks.form()
    wanted = asked(6, 90)
    begun = [ranks.begin(one) for one in wanted]
    for number, told in ((2, 0), (5, 1)):
        at_token(ranks.ranks[0], begun[number], 15)
        ranks.ranks[told].send(Cancel(wanted[number].request_id))
    answers = finish_all(ranks, begun)
    for number, (one, answer) in enumerate(zip(wanted, answers, strict=True)):
        assert answer.finished is not None
        assert (answer.finished.reason == "cancelled") == (number in (2, 5))
        assert isinstance(one.prompt, tuple)
        assert answer.tokens == undisturbed(llama, one.prompt, 90, one.sampling)[: len(answer.tokens)]
        assert answer.tokens


def test_a_conversation_goes_on_from_what_a_batch_computed(ranks: Cluster, llama: Path) -> None:
    ranks.load(llama, [2, 3], serving=Serving(6))
    ranks.form()
    wanted = asked(4)
    answers = finish_all(ranks, [ranks.begin(one) for one in wanted])
    turns = [
        request([*(one.prompt or ()), *answer.tokens, 5, 9], 20)
        for one, answer in zip(wanted, answers, strict=True)
    ]
    again = finish_all(ranks, [ranks.begin(one) for one in turns])
    for one, answer in zip(turns, again, strict=True):
        assert answer.finished is not None
        assert isinstance(one.prompt, tuple)
        assert answer.finished.cached_tokens == len(one.prompt) - 3
        assert right(llama, one, answer)


def test_likelihoods_come_with_each_answer_that_asks_for_them(ranks: Cluster, llama: Path) -> None:
    ranks.load(llama, [2, 3], serving=Serving(6))
    ranks.form()
    plain, likely = asked(2, 20), [request([3, 1, 4, number], 20, logprobs=number) for number in range(3)]
    answers = finish_all(ranks, [ranks.begin(one) for one in (*plain, *likely)])
    assert all(out.logprob is None for answer in answers[:2] for out in answer.outs)
    for number, answer in enumerate(answers[2:]):
        assert all(out.logprob is not None and len(out.top_logprobs) == number for out in answer.outs)


@pytest.mark.parametrize("config", [LLAMA, SLIDING[0], HYBRID[0]], ids=lambda config: str(config["model_type"]))
def test_a_rank_alone_takes_back_what_it_began_of_a_batch_that_one_leaves(
    ranks: Cluster, notes: Path, tmp_path: Path, config: dict[str, object]
) -> None:
    """A twentieth of the tokens ends an answer, so somebody leaves all the time, and others join."""
    ends = set(range(0, 260, 20))
    folder = write_model(tmp_path / "model", {**config, "eos_token_id": sorted(ends)})
    layers = config["num_hidden_layers"]
    assert isinstance(layers, int)
    assert all(isinstance(said, Loaded) for said in ranks.load(folder, [layers], serving=Serving(6)))
    ranks.form()
    (notes / "ahead").write_text("")
    wanted = [*asked(10), *asked(2, 200, first=20)]
    begun = [ranks.begin(one) for one in wanted]
    ranks.ranks[0].send(Cancel(wanted[-1].request_id))
    for one, answer in zip(wanted, finish_all(ranks, begun), strict=True):
        assert isinstance(one.prompt, tuple)
        expected = undisturbed(folder, one.prompt, one.max_tokens, one.sampling)
        last = next((index for index, token in enumerate(expected) if token in ends), len(expected))
        cancelled = answer.finished is not None and answer.finished.reason == "cancelled"
        assert answer.tokens == expected[: len(answer.tokens) if cancelled else last + 1]
    assert (notes / "ahead").read_text(), "no batch was begun ahead"


def test_what_fails_in_a_batch_is_found_by_running_each_alone(tmp_path: Path, llama: Path) -> None:
    with cluster(tmp_path, 2, prelude=FAILS_IN_BATCHES) as pair:
        pair.load(llama, [2, 3], serving=Serving(6))
        pair.form()
        harmless = [request([200, *PROMPT[:number]], 80, logit_bias={13: -100.0}) for number in range(1, 5)]
        guilty = request([1, 2, 3], 40, logit_bias={13: 100.0})
        begun = [pair.begin(one) for one in (*harmless, guilty)]
        groups = 0
        while isinstance(told := pair.ranks[0].expect(Aborted, Finished), Aborted):
            groups += 1
            assert groups < 10
            pair.ranks[1].expect(Aborted)
            pair.form()
        assert (told.request_id, told.reason) == (guilty.request_id, "cancelled")
        answers = finish_all(pair, begun[:-1])
        assert all(len(answer.tokens) == 80 for answer in answers)
