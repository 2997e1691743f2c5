"""Every kind of architecture that mlx-lm has gives, divided over three ranks, the tokens of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exoengine.protocol import Abort, Aborted, Loaded, LoadFailed, Sampling, SyncSettings, TokenOut
from tests.engine.architectures import ALL, NOT_DIVISIBLE, WITH_UNUSUAL_CACHES
from tests.engine.driver import Answer, Cluster, request
from tests.engine.models import LLAMA, undisturbed, write_model

PROMPT = [(7 * index + 3) % 250 for index in range(40)]
STEPS = 64
SAMPLED = Sampling(temperature=1.0, seed=4)


def name(config: dict[str, Any]) -> str:
    return str(config["model_type"])


def loaded(cluster: Cluster, folder: Path, split: list[int], sync: SyncSettings | None = None) -> None:
    for said in cluster.load(folder, split, sync):
        assert isinstance(said, Loaded), said
    cluster.form()


@pytest.mark.parametrize("config", ALL, ids=name)
def test_an_architecture_divided_over_ranks_gives_the_same_tokens(
    trio: Cluster, tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = write_model(tmp_path / "model", config)
    loaded(trio, folder, [1, 2, 1])
    greedy, sampled = request(PROMPT, STEPS), request(PROMPT, STEPS, temperature=1.0, seed=4)
    assert trio.generate(greedy).tokens == undisturbed(folder, PROMPT, STEPS)
    assert trio.generate(sampled).tokens == undisturbed(folder, PROMPT, STEPS, SAMPLED)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_divided_give_the_same_tokens(trio: Cluster, tmp_path: Path, bits: int) -> None:
    folder = write_model(tmp_path / "model", LLAMA, bits=bits)
    loaded(trio, folder, [2, 3])
    assert trio.generate(request(PROMPT, STEPS)).tokens == undisturbed(folder, PROMPT, STEPS)


@pytest.mark.parametrize("config", WITH_UNUSUAL_CACHES, ids=name)
@pytest.mark.parametrize("sync", ["fast", "safe"])
def test_a_cache_that_cannot_be_trimmed_survives_an_abort(
    trio: Cluster, tmp_path: Path, config: dict[str, Any], sync: str
) -> None:
    folder = write_model(tmp_path / "model", config)
    loaded(trio, folder, [1, 3], SyncSettings(sync=sync))  # type: ignore[arg-type]
    asked = request(PROMPT, STEPS, temperature=1.0, seed=4)
    trio.begin(asked)
    for number in range(3):
        trio.ranks[0].expect(TokenOut, where=lambda said, least=18 * number: said.index >= least)
        trio.ranks[number % 2].send(Abort("the test cuts a link"))
        for rank in trio.ranks[:2]:
            rank.expect(Aborted)
        trio.form()
    expected = undisturbed(folder, PROMPT, STEPS, SAMPLED)
    for answer in trio.finish(asked.request_id):
        assert isinstance(answer, Answer)
        assert answer.tokens == expected


@pytest.mark.parametrize("config", NOT_DIVISIBLE, ids=name)
def test_a_model_that_cannot_be_divided_says_so_and_runs_whole(
    trio: Cluster, tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = write_model(tmp_path / "model", config)
    refusals = [said for said in trio.load(folder, [2, 2]) if isinstance(said, LoadFailed)]
    assert refusals
    assert all(said.code == "not_splittable" and "run it on one node" in said.text for said in refusals)
    loaded(trio, folder, [4])
    assert trio.generate(request(PROMPT, 8)).tokens == undisturbed(folder, PROMPT, 8)
