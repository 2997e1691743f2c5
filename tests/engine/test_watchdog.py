"""With a slow stage no graph waits longer than the GPU's watchdog allows, unless fast steps were forced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exoengine.protocol import Heartbeat, Loaded, SyncSettings
from tests.engine.driver import Cluster, cluster, request
from tests.engine.models import undisturbed

WATCHDOG_S = 0.2
PROMPT = list(range(5, 45))

FIRST_STAGE_TAKES_LONGER = """
import sys, time
from exoengine.pipeline import Pipeline
if sys.argv[2].endswith("r0.sock"):
    run = Pipeline._run_stage
    def slow(self, *args):
        time.sleep(0.3)
        return run(self, *args)
    Pipeline._run_stage = slow
"""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slow"), 2, prelude=FIRST_STAGE_TAKES_LONGER) as made:
        yield made


def longest_wait_s(slow: Cluster, llama: Path, sync: str) -> float:
    settings = SyncSettings(sync=sync, watchdog_s=WATCHDOG_S)  # type: ignore[arg-type]
    assert all(isinstance(said, Loaded) for said in slow.load(llama, [2, 3], settings))
    slow.form()
    assert slow.generate(request(PROMPT, 6)).tokens == undisturbed(llama, PROMPT, 6)
    return slow.ranks[1].expect(Heartbeat, where=lambda said: said.state == "ready").longest_gpu_wait_s


def test_dynamic_steps_are_safe_before_any_graph_waits_too_long(slow: Cluster, llama: Path) -> None:
    assert longest_wait_s(slow, llama, "dynamic") < WATCHDOG_S


def test_forced_fast_steps_are_seen_to_break_the_limit(slow: Cluster, llama: Path) -> None:
    assert longest_wait_s(slow, llama, "fast") > WATCHDOG_S
