"""With a slow stage no graph waits longer than the GPU's watchdog allows, unless fast steps were forced."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from exoengine.protocol import Aborted, Heartbeat, Loaded, SyncSettings, TokenOut
from tests.engine.driver import Answer, Cluster, cluster, request
from tests.engine.models import undisturbed

WATCHDOG_S = 0.2
LONG_WATCHDOG_S = 2.0
PROMPT = list(range(5, 45))
STEPS = 300

A_STAGE_TAKES_LONGER = """
import sys, time
from exoengine.generate.pipeline import Pipeline
if sys.argv[2].endswith("r{rank}.sock"):
    run = Pipeline.{last_part}
    def slow(self, *args):
        time.sleep(0.3)
        return run(self, *args)
    Pipeline.{last_part} = slow
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("pair"), 2) as made:
        yield made


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    prelude = A_STAGE_TAKES_LONGER.format(rank=0, last_part="_send")
    with cluster(tmp_path_factory.mktemp("slow"), 2, prelude=prelude) as made:
        yield made


@pytest.fixture(scope="module")
def slow_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    prelude = A_STAGE_TAKES_LONGER.format(rank=1, last_part="_draw")
    with cluster(tmp_path_factory.mktemp("slow"), 2, prelude=prelude) as made:
        yield made


def longest_wait_s(slow: Cluster, llama: Path, sync: str, rank: int = 1) -> float:
    settings = SyncSettings(sync=sync, watchdog_s=WATCHDOG_S)  # type: ignore[arg-type]
    assert all(isinstance(said, Loaded) for said in slow.load(llama, [2, 3], settings))
    slow.form()
    assert slow.generate(request(PROMPT, 6)).tokens == undisturbed(llama, PROMPT, 6)
    return slow.ranks[rank].expect(Heartbeat, where=lambda said: said.state == "ready").longest_gpu_wait_s


def test_dynamic_steps_are_safe_before_any_graph_waits_too_long(slow: Cluster, llama: Path) -> None:
    assert longest_wait_s(slow, llama, "dynamic") < WATCHDOG_S


def test_forced_fast_steps_are_seen_to_break_the_limit(slow: Cluster, llama: Path) -> None:
    assert longest_wait_s(slow, llama, "fast") > WATCHDOG_S


def test_the_first_rank_waits_for_the_token_as_the_others_for_their_input(slow_end: Cluster, llama: Path) -> None:
    assert longest_wait_s(slow_end, llama, "dynamic", rank=0) < WATCHDOG_S
    assert longest_wait_s(slow_end, llama, "fast", rank=0) > WATCHDOG_S


def test_a_slow_first_stage_does_not_count_as_its_own_wait(slow: Cluster, llama: Path) -> None:
    assert longest_wait_s(slow, llama, "fast", rank=0) < WATCHDOG_S


@pytest.mark.parametrize("stopped", [0, 1])
@pytest.mark.parametrize("sync", ["dynamic", "safe"])
def test_no_graph_of_a_pipeline_waits_past_the_watchdog_for_a_stopped_rank(
    pair: Cluster, llama: Path, sync: str, stopped: int
) -> None:
    """The other rank's graph waits for its hidden state, or for the token that it draws."""
    settings = SyncSettings(sync=sync, watchdog_s=LONG_WATCHDOG_S)  # type: ignore[arg-type]
    assert all(isinstance(said, Loaded) for said in pair.load(llama, [2, 3], settings))
    pair.form()
    begin = pair.begin(request(PROMPT, STEPS))
    pair.ranks[0].expect(TokenOut, where=lambda said: said.index >= 20)
    pair.ranks[stopped].kill(signal.SIGSTOP)
    assert pair.ranks[1 - stopped].expect(Aborted).code in ("peer_lost", "deadline")
    pair.ranks[stopped].kill(signal.SIGCONT)
    pair.ranks[stopped].expect(Aborted)
    pair.form()
    expected = undisturbed(llama, PROMPT, STEPS)
    for answer in pair.finish(begin.request.request_id):
        assert isinstance(answer, Answer)
        assert answer.tokens == expected[answer.outs[0].index :]
    for rank in pair.ranks:
        beat = rank.expect(Heartbeat, where=lambda said: said.state == "ready")
        assert (beat.longest_gpu_wait_s < LONG_WATCHDOG_S, beat.gpu_wait_violations) == (True, 0)
