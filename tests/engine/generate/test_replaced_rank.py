"""A rank that was killed runs its layers again; the others keep their caches, and the answer stays the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exoengine.protocol import (
    Abort,
    Aborted,
    Begin,
    GenerationRequest,
    Heartbeat,
    Loaded,
    Sampling,
    SyncSettings,
    TokenOut,
)
from tests.engine.architectures import HYBRID, SLIDING
from tests.engine.driver import Answer, Cluster, cluster, request
from tests.engine.models import LLAMA, undisturbed, write_model

CHUNK = 128
PROMPT = [7 * index % 250 for index in range(1900)]
STEPS = 40
SAMPLED = Sampling(temperature=1.0, seed=9)

STEPS_TAKE_A_WHILE = """
import time
from exoengine.generate.pipeline import Pipeline
run = Pipeline.run
def slow(self, step, *args):
    if not step.singly:
        time.sleep(0.06 if step.draw < 0 else 0.01)
    return run(self, step, *args)
Pipeline.run = slow
"""

KEEPS_LITTLE = "from exoengine.generate import sent_activations; sent_activations.MAX_SENT_BYTES = 1500 * 256"
"""The llama's hidden state has 256 bytes."""

KINDS: dict[str, dict[str, Any]] = {
    "llama": LLAMA, "sliding": SLIDING[0], "gated": HYBRID[0],
}  # fmt: skip


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("replaced"), 3, prelude=STEPS_TAKE_A_WHILE) as made:
        yield made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("kinds")
    return {name: write_model(place / name, config) for name, config in KINDS.items()}


def started(ranks: Cluster, folder: Path, sync: str = "dynamic") -> Begin:
    split = [2, 2, 1] if folder.name == "llama" else [1, 2, 1]
    settings = SyncSettings(sync=sync)  # type: ignore[arg-type]
    assert all(isinstance(said, Loaded) for said in ranks.load(folder, split, settings))
    ranks.form()
    return ranks.begin(asked())


def asked() -> GenerationRequest:
    return request(PROMPT, STEPS, temperature=1.0, seed=9)


def replace(ranks: Cluster, victim: int, begin: Begin) -> None:
    """Kills one rank's process and puts another in its place, that knows nothing."""
    ranks.ranks[victim].kill()
    for index, rank in enumerate(ranks.ranks):
        if index != victim:
            rank.expect(Aborted)
    ranks.ranks[victim].close()
    ranks.ranks[victim] = ranks.start()
    ranks.ranks[victim].send(ranks.loads[victim])
    ranks.ranks[victim].expect(Loaded)
    ranks.ranks[victim].send(begin)
    ranks.form()


def finished(ranks: Cluster, begin: Begin, folder: Path) -> list[int]:
    """How many tokens each rank ran because of faults; the answer must be the undisturbed one."""
    expected = undisturbed(folder, PROMPT, STEPS, SAMPLED, chunk=CHUNK)
    for answer in ranks.finish(begin.request.request_id):
        assert isinstance(answer, Answer)
        assert answer.tokens == expected
    return [
        rank.expect(Heartbeat, where=lambda said: said.state == "ready").replayed_tokens for rank in ranks.ranks
    ]


def counted(ranks: Cluster) -> list[int]:
    """Since its start, as its newest heartbeat says."""
    return [
        next((said.replayed_tokens for said in reversed(rank.seen) if isinstance(said, Heartbeat)), 0)
        for rank in ranks.ranks
    ]


@pytest.mark.parametrize(
    ("kind", "victim", "sync"),
    [("llama", 0, "fast"), ("sliding", 1, "safe"), ("gated", 2, "fast")],
)
def test_in_mid_decode_only_the_replaced_rank_runs_again(
    ranks: Cluster, folders: dict[str, Path], kind: str, victim: int, sync: str
) -> None:
    begin = started(ranks, folders[kind], sync)
    ranks.ranks[0].expect(TokenOut, where=lambda said: said.index >= 20)
    before = counted(ranks)
    replace(ranks, victim, begin)
    after = finished(ranks, begin, folders[kind])
    for rank in range(3):
        if rank == victim:
            assert after[rank] >= len(PROMPT)
        else:
            assert after[rank] - before[rank] <= 2  # the step that failed


@pytest.mark.parametrize(("kind", "victim"), [("llama", 0), ("gated", 1)])
def test_in_mid_prefill_only_the_replaced_rank_runs_again(
    ranks: Cluster, folders: dict[str, Path], kind: str, victim: int
) -> None:
    begin = started(ranks, folders[kind])
    ranks.ranks[2].expect(Heartbeat, where=lambda said: said.state == "generating")
    time.sleep(0.4)
    before = counted(ranks)
    replace(ranks, victim, begin)
    assert not any(isinstance(said, TokenOut) and said.request_id == begin.request.request_id
                   for said in ranks.ranks[0].seen)  # fmt: skip
    after = finished(ranks, begin, folders[kind])
    assert CHUNK <= after[victim] < len(PROMPT)
    for rank in {0, 1, 2} - {victim}:
        assert after[rank] - before[rank] <= 5 * CHUNK  # what another rank was ahead


def test_a_second_fault_while_a_rank_catches_up(ranks: Cluster, folders: dict[str, Path]) -> None:
    begin = started(ranks, folders["llama"])
    ranks.ranks[0].expect(TokenOut, where=lambda said: said.index >= 20)
    before = counted(ranks)
    replace(ranks, 1, begin)
    ranks.ranks[1].expect(Heartbeat, where=lambda said: said.state == "generating")
    time.sleep(0.3)
    ranks.ranks[2].send(Abort("the test cuts a link"))
    for rank in ranks.ranks:
        rank.expect(Aborted)
    ranks.form()
    after = finished(ranks, begin, folders["llama"])
    assert len(PROMPT) <= after[1] < len(PROMPT) + STEPS + CHUNK
    assert max(after[0] - before[0], after[2] - before[2]) <= 2


def test_a_follow_up_turn_is_run_again_as_it_was_run(ranks: Cluster, folders: dict[str, Path]) -> None:
    begin = started(ranks, folders["llama"])
    first = ranks.finish(begin.request.request_id)[0]
    assert isinstance(first, Answer)
    follow_up = request([*PROMPT[:1000], 3, 1, 4, *PROMPT[:300]], STEPS, temperature=1.0, seed=2)
    expected = ranks.generate(follow_up)
    assert expected.finished is not None
    assert expected.finished.cached_tokens == 1000 // CHUNK * CHUNK
    turn = [*follow_up.prompt, *expected.tokens, 5, 6, 7]  # type: ignore[misc]
    undisturbed_turn = ranks.generate(request(turn, STEPS, temperature=1.0, seed=3))
    ranks.load(folders["llama"], [2, 2, 1])  # now nothing is left of it, and it is made again
    ranks.form()
    ranks.generate(request([*PROMPT[:1000], 1], 1))
    ranks.generate(request(list(follow_up.prompt or ()), STEPS, temperature=1.0, seed=2))  # type: ignore[arg-type]
    begin = ranks.begin(request(turn, STEPS, temperature=1.0, seed=3))
    ranks.ranks[0].expect(
        TokenOut, where=lambda said: (said.request_id, said.index) == (begin.request.request_id, 20)
    )
    replace(ranks, 1, begin)
    for answer in ranks.finish(begin.request.request_id):
        assert isinstance(answer, Answer)
        assert answer.tokens == undisturbed_turn.tokens
        assert answer.finished is not None
        assert answer.finished.cached_tokens == len(turn) - 4


def test_what_was_not_kept_is_run_again_by_the_ranks_before(tmp_path: Path, folders: dict[str, Path]) -> None:
    with cluster(tmp_path, 3, prelude=STEPS_TAKE_A_WHILE.replace("0.06", "0.0") + KEEPS_LITTLE) as ranks:
        begin = started(ranks, folders["llama"])
        ranks.ranks[0].expect(TokenOut, where=lambda said: said.index >= 20)
        replace(ranks, 2, begin)
        after = finished(ranks, begin, folders["llama"])
    assert min(after) >= 300
