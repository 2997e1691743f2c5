"""A model that is divided over ranks gives the tokens of a single process, however it is divided."""

from __future__ import annotations

from pathlib import Path

import pytest

from exoengine.protocol import Formed, Heartbeat, Loaded, Sampling, SyncSettings
from tests.engine.driver import Answer, Cluster, cluster, request
from tests.engine.models import undisturbed

PROMPT = list(range(5, 45))
STEPS = 64
SAMPLED = Sampling(temperature=1.0, seed=3)


def loaded(cluster: Cluster, folder: Path, split: list[int], sync: SyncSettings | None = None) -> list[Formed]:
    for said, count in zip(cluster.load(folder, split, sync), split, strict=True):
        assert isinstance(said, Loaded), said
        assert said.layers[1] - said.layers[0] == count
    return cluster.form()


@pytest.mark.parametrize("split", [[5], [2, 3], [4, 1], [1, 3, 1], [2, 1, 2]])
def test_greedy_and_sampled_tokens_are_those_of_one_process(trio: Cluster, llama: Path, split: list[int]) -> None:
    loaded(trio, llama, split)
    assert trio.generate(request(PROMPT, STEPS)).tokens == undisturbed(llama, PROMPT, STEPS)
    sampled = trio.generate(request(PROMPT, STEPS, temperature=1.0, seed=3))
    assert sampled.tokens == undisturbed(llama, PROMPT, STEPS, SAMPLED)


def test_a_tied_head_lives_on_the_last_stage_too(trio: Cluster, qwen2: Path) -> None:
    loaded(trio, qwen2, [3, 1])
    assert trio.generate(request(PROMPT, STEPS)).tokens == undisturbed(qwen2, PROMPT, STEPS)


@pytest.mark.parametrize("sync", ["safe", "fast", "dynamic"])
def test_every_sync_mode_gives_the_same_tokens(trio: Cluster, llama: Path, sync: str) -> None:
    loaded(trio, llama, [2, 2, 1], SyncSettings(sync=sync))  # type: ignore[arg-type]
    answer = trio.generate(request(PROMPT, STEPS, temperature=1.0, seed=3))
    assert answer.tokens == undisturbed(llama, PROMPT, STEPS, SAMPLED)


CHANGES_AT_EVERY_STEP = """
from exoengine.generate.sync_mode import SyncChoice, SyncPolicy
SyncPolicy.choose = lambda self, kv_tokens: SyncChoice(kv_tokens // {period} % 2 == 0, "the test")
"""


@pytest.mark.parametrize("period", [1, 3])
def test_changes_of_the_mode_change_no_token(tmp_path: Path, llama: Path, period: int) -> None:
    """What a safe step writes a fast one reads, and the other way round; what was built for the wrong mode is
    built again.
    """
    with cluster(tmp_path, 3, prelude=CHANGES_AT_EVERY_STEP.format(period=period)) as changing:
        loaded(changing, llama, [2, 2, 1])
        answer = changing.generate(request(PROMPT, STEPS, temperature=1.0, seed=3))
        assert answer.tokens == undisturbed(llama, PROMPT, STEPS, SAMPLED)


WITHOUT_THE_NATIVE_GROUP = """
import sys
import mlx.core as mx
from exoengine.native import build, module
def refuse(*_, **__):
    raise ValueError("a safe step used an operation of a group")
mx.distributed.send = mx.distributed.recv = refuse
if sys.argv[2].endswith({where!r}):
    module.status = lambda _: build.Status(reason="the test took it away", cure="end the test")
"""


@pytest.mark.parametrize("where", ["r1.sock", ".sock"])
@pytest.mark.parametrize("sync", ["dynamic", "fast"])
def test_without_the_native_group_on_any_rank_every_step_is_safe(
    tmp_path: Path, llama: Path, where: str, sync: str
) -> None:
    with cluster(tmp_path, 3, prelude=WITHOUT_THE_NATIVE_GROUP.format(where=where)) as ranks:
        loaded(ranks, llama, [2, 2, 1], SyncSettings(sync=sync))  # type: ignore[arg-type]
        assert ranks.generate(request(PROMPT, STEPS)).tokens == undisturbed(llama, PROMPT, STEPS)
        reason = "the native group is not ready: the test took it away (end the test)"
        assert ranks.ranks[1].hello.native == reason
        said = ranks.ranks[1].expect(Heartbeat, where=lambda said: said.state == "ready")
        assert (said.sync_mode, said.sync_reason) == ("safe", reason)


AS_ON_CUDA = """
import mlx.core as mx
mx.cuda.is_available = lambda: True
"""
"""This build computes on the processor all the same: only what we decide by it changes."""


@pytest.mark.parametrize(("sync", "mode"), [("dynamic", "safe"), ("fast", "fast")])
def test_on_cuda_steps_are_fast_only_where_that_is_configured(
    tmp_path: Path, llama: Path, sync: str, mode: str
) -> None:
    with cluster(tmp_path, 3, prelude=AS_ON_CUDA) as ranks:
        loaded(ranks, llama, [2, 2, 1], SyncSettings(sync=sync))  # type: ignore[arg-type]
        answer = ranks.generate(request(PROMPT, STEPS, temperature=1.0, seed=3))
        assert answer.tokens == undisturbed(llama, PROMPT, STEPS, SAMPLED)
        reason = "configured" if sync == "fast" else "with MLX's CUDA build a safe step takes less time"
        said = ranks.ranks[1].expect(Heartbeat, where=lambda said: said.sync_reason == reason)
        assert said.sync_mode == mode


def test_a_prompt_of_many_chunks_goes_through_all_stages(trio: Cluster, llama: Path) -> None:
    prompt = [7 * index % 250 for index in range(1700)]
    loaded(trio, llama, [2, 2, 1])
    assert trio.generate(request(prompt, 16)).tokens == undisturbed(llama, prompt, 16)


def test_a_prompt_of_one_token_needs_no_prefill(trio: Cluster, llama: Path) -> None:
    loaded(trio, llama, [3, 2])
    assert trio.generate(request([65], 8)).tokens == undisturbed(llama, [65], 8)


def test_every_way_of_sampling_is_the_same_on_ranks(trio: Cluster, llama: Path) -> None:
    loaded(trio, llama, [2, 3])
    for options in (
        {"top_p": 0.7}, {"top_k": 12}, {"min_p": 0.02}, {"repetition_penalty": 1.4}, {"presence_penalty": 0.9},
        {"frequency_penalty": 0.9}, {"logit_bias": {65: 6.0, 66: 6.0}}, {"top_k": 100_000},
    ):  # fmt: skip
        sampling = Sampling(temperature=0.8, seed=11, **options)  # type: ignore[arg-type]
        answer = trio.generate(request(PROMPT, 24, temperature=0.8, seed=11, **options))
        assert answer.tokens == undisturbed(llama, PROMPT, 24, sampling), options


def test_the_seed_decides_what_is_drawn(trio: Cluster, llama: Path) -> None:
    loaded(trio, llama, [2, 3])
    one, two, again = (trio.generate(request(PROMPT, 24, temperature=1.0, seed=seed)) for seed in (1, 2, 1))
    assert one.tokens == again.tokens != two.tokens


def test_log_probabilities_reach_every_rank(trio: Cluster, llama: Path) -> None:
    loaded(trio, llama, [2, 2, 1])
    asked = request(PROMPT, 6, logprobs=3)
    trio.begin(asked)
    for answer in trio.finish(asked.request_id):
        assert isinstance(answer, Answer)
        for out in answer.outs:
            assert len(out.top_logprobs) == 3
            assert out.logprob == out.top_logprobs[0][1] == max(value for _, value, _ in out.top_logprobs)


def test_requests_are_served_in_their_order(trio: Cluster, llama: Path) -> None:
    loaded(trio, llama, [3, 2])
    asked = [request([65 + number], 12, temperature=1.0, seed=number) for number in range(4)]
    for one in asked:
        trio.begin(one)
    for number, one in enumerate(asked):
        for answer in trio.finish(one.request_id):
            assert isinstance(answer, Answer)
            assert answer.tokens == undisturbed(llama, [65 + number], 12, Sampling(temperature=1.0, seed=number))


def test_a_quantised_cache_is_that_of_one_process(trio: Cluster, tmp_path: Path) -> None:
    from tests.engine.models import LLAMA, write_model

    folder = write_model(tmp_path / "wide", {**LLAMA, "head_dim": 64})
    trio.load(folder, [2, 3], kv_bits=8)
    trio.form()
    assert trio.generate(request(PROMPT, 32)).tokens == undisturbed(folder, PROMPT, 32, kv_bits=8)
