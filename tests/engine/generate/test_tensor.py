"""Tensor parallelism: every rank has its part of each layer, and an answer lives through what befalls any rank."""

from __future__ import annotations

import signal
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
from tests.engine.architectures import HYBRID
from tests.engine.driver import Answer, Cluster, cluster, request
from tests.engine.models import LLAMA, undisturbed, write_model

PROMPT = list(range(5, 45))
STEPS = 300
SAMPLED = Sampling(temperature=1.0, seed=9)
LAYERS = 5
WATCHDOG_S = 2.0
THREE_HEADS = {**LLAMA, "num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 66}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("tensor"), 2) as made:
        yield made


def loaded(ranks: Cluster, folder: Path, sync: str = "dynamic", **options: int) -> None:
    settings = SyncSettings(sync=sync, watchdog_s=WATCHDOG_S)  # type: ignore[arg-type]
    for said in ranks.load_parts(folder, 2, LAYERS, settings, **options):
        assert isinstance(said, Loaded), said
    ranks.form()


@pytest.mark.parametrize("sync", ["fast", "safe", "dynamic"])
def test_greedy_and_sampled_tokens_are_those_of_one_process(ranks: Cluster, llama: Path, sync: str) -> None:
    loaded(ranks, llama, sync)
    assert ranks.generate(request(PROMPT, 64)).tokens == undisturbed(llama, PROMPT, 64)
    sampled = ranks.generate(request(PROMPT, 64, temperature=1.0, seed=9))
    assert sampled.tokens == undisturbed(llama, PROMPT, 64, SAMPLED)


def started(ranks: Cluster, folder: Path, sync: str) -> Begin:
    loaded(ranks, folder, sync)
    begin = ranks.begin(request(PROMPT, STEPS, temperature=1.0, seed=9))
    at_token(ranks, begin, 20)
    return begin


def at_token(ranks: Cluster, begin: Begin, index: int) -> None:
    wanted = begin.request.request_id
    ranks.ranks[0].expect(TokenOut, where=lambda said: said.request_id == wanted and said.index >= index)


def finished(ranks: Cluster, begin: Begin, folder: Path) -> list[Answer]:
    expected = undisturbed(folder, PROMPT, STEPS, SAMPLED)
    answers = ranks.finish(begin.request.request_id)
    for answer in answers:
        assert isinstance(answer, Answer), answer
        assert answer.tokens == expected[answer.outs[0].index :]
    return [answer for answer in answers if isinstance(answer, Answer)]


@pytest.mark.parametrize("sync", ["fast", "safe"])
def test_a_cut_is_a_step_that_is_run_again(ranks: Cluster, llama: Path, sync: str) -> None:
    begin = started(ranks, llama, sync)
    replayed = [last_beat(ranks, rank).replayed_tokens for rank in (0, 1)]
    for rank, index in ((0, 50), (1, 90), (0, 130)):
        ranks.ranks[rank].send(Abort("the test cuts a link"))
        for one in ranks.ranks:
            one.expect(Aborted)
        ranks.form()
        at_token(ranks, begin, index)
    finished(ranks, begin, llama)
    for rank, before in enumerate(replayed):
        assert last_beat(ranks, rank).replayed_tokens - before < 3 * 4  # no more than the steps under way


def last_beat(ranks: Cluster, rank: int) -> Heartbeat:
    return [said for said in ranks.ranks[rank].seen if isinstance(said, Heartbeat)][-1]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_replaced_rank_makes_all_prefill_the_sequence_again(ranks: Cluster, llama: Path, victim: int) -> None:
    begin = started(ranks, llama, "dynamic")
    ranks.ranks[victim].kill()
    assert ranks.ranks[1 - victim].expect(Aborted).code == "peer_lost"
    ranks.ranks[victim].close()
    ranks.ranks[victim] = ranks.start()
    ranks.ranks[victim].send(ranks.loads[victim])
    assert isinstance(ranks.ranks[victim].expect(Loaded, LoadFailed), Loaded)
    ranks.ranks[victim].send(begin)
    before = last_beat(ranks, 1 - victim).replayed_tokens
    ranks.form()
    finished(ranks, begin, llama)
    ranks.ranks[1 - victim].expect(Heartbeat, where=lambda said: said.state == "ready")
    assert last_beat(ranks, 1 - victim).replayed_tokens - before >= len(PROMPT)


@pytest.mark.parametrize("sync", ["dynamic", "safe"])
def test_no_graph_waits_past_the_watchdog_for_a_stopped_rank(ranks: Cluster, llama: Path, sync: str) -> None:
    begin = started(ranks, llama, sync)
    ranks.ranks[1].kill(signal.SIGSTOP)
    said = ranks.ranks[0].expect(Aborted)
    assert said.code in ("peer_lost", "deadline")
    ranks.ranks[1].kill(signal.SIGCONT)
    ranks.ranks[1].expect(Aborted)
    ranks.form()
    finished(ranks, begin, llama)
    for rank in (0, 1):
        beat = last_beat(ranks, rank)
        assert (beat.longest_gpu_wait_s < WATCHDOG_S, beat.gpu_wait_violations) == (True, 0)


def test_a_long_prompt_goes_in_chunks_and_is_known_again(ranks: Cluster, llama: Path) -> None:
    prompt = [7 * index % 250 for index in range(1300)]
    loaded(ranks, llama)
    assert ranks.generate(request(prompt, 16)).tokens == undisturbed(llama, prompt, 16)
    again = ranks.generate(request(prompt, 16))
    assert again.tokens == undisturbed(llama, prompt, 16)
    assert again.finished is not None
    assert again.finished.cached_tokens == len(prompt) - 1


def test_a_quantised_cache_is_that_of_one_process(ranks: Cluster, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "wide", {**LLAMA, "head_dim": 64})
    loaded(ranks, folder, kv_bits=8)
    assert ranks.generate(request(PROMPT, 32)).tokens == undisturbed(folder, PROMPT, 32, kv_bits=8)


def test_a_rank_holds_its_part_and_no_more(ranks: Cluster, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "large", {**LLAMA, "hidden_size": 512, "intermediate_size": 1024})
    loaded(ranks, folder)
    parts = [said for rank in ranks.ranks for said in rank.seen if isinstance(said, Loaded)][-1]
    whole = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert parts.weight_bytes < 0.6 * whole


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (THREE_HEADS, "its 3 heads cannot be divided by 2"),
        (HYBRID[7], "mlx-lm cannot divide"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_reason(
    ranks: Cluster, tmp_path: Path, config: dict[str, object], reason: str
) -> None:
    folder = write_model(tmp_path / "model", config)
    for said in ranks.load_parts(folder, 2, int(str(config["num_hidden_layers"]))):
        assert isinstance(said, LoadFailed)
        assert said.code == "not_divisible"
        assert reason in said.text
        assert 'engine.parallel = "pipeline"' in said.text
