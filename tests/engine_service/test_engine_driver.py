"""The engine's driver on one node: what breaks in it costs a model or a message, never the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from exod.core.engine.engine_events import EngineMessageReceived, PlanCommitted, WorkerSaid
from exod.core.engine.engine_messages import FormOrder, RankPhase
from exod.core.engine_core import EngineCore
from exod.engine_service import model_search
from exod.engine_service.engine_driver import EngineDriver
from exod.model import MeshPlan, NodeId
from exoengine.protocol import Heartbeat, SyncSettings
from tests.core.engine.engine_samples import A, B, a_plan, hello, status

pytestmark = pytest.mark.anyio

PATIENCE_S = 10.0


@dataclass
class Hosted:
    host: EngineDriver
    job: asyncio.Task[None]
    emitted: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    async def until(self, condition: Callable[[], object], text: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    assert not self.job.done(), "the host ended"
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(f"never: {text}")

    def errors(self) -> list[object]:
        return [data["task"] for kind, data in self.emitted if kind == "internal.error"]


@asynccontextmanager
async def a_host(folder: Path, first_plan: MeshPlan | None = None) -> AsyncIterator[Hosted]:
    """`first_plan` is committed before the host runs."""
    emitted: list[tuple[str, dict[str, object]]] = []
    host = EngineDriver(
        EngineCore(A, 1, SyncSettings(), 60.0, 52420),
        folder,
        {},
        send=lambda node, message: True,
        tell_all=lambda message: None,
        on_event=lambda kind, data: emitted.append((kind, data)),
        on_change=lambda: None,
        on_model_wish=lambda model: None,
        on_ring_port=lambda port: None,
        on_edge=lambda seen: None,
    )
    if first_plan is not None:
        host.feed(PlanCommitted(first_plan, "first plan"))
    job = asyncio.create_task(host.run())
    await asyncio.sleep(0)
    try:
        yield Hosted(host, job, emitted)
    finally:
        job.cancel()
        await asyncio.wait([job])


async def test_the_rank_that_says_why_is_named_before_the_one_that_waits_for_it(tmp_path: Path) -> None:
    plan = a_plan(A, B)
    async with a_host(tmp_path) as hosted:
        hosted.host.feed(PlanCommitted(plan, "first plan"))
        given_up = status(B, RankPhase.ABORTED, plan=plan.hash, text="cannot listen on 10.0.0.2:52420")
        hosted.host.feed(EngineMessageReceived(B, given_up))
        assert hosted.host.core.trouble() == f"the rank of {B} is aborted: cannot listen on 10.0.0.2:52420"


async def test_a_model_that_breaks_the_reader_is_that_models_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("a library's own bug")

    monkeypatch.setattr(model_search, "inspect", breaks)
    async with a_host(tmp_path) as hosted:
        hosted.host.feed(PlanCommitted(a_plan(A, model=str(tmp_path)), "first plan"))
        await hosted.until(lambda: hosted.host.core.rank.phase is RankPhase.FAILED, "the rank fails")
        assert hosted.host.core.rank.model.failure == (
            "unreadable",
            f"{tmp_path} could not be read: RuntimeError: a library's own bug",
        )
        assert hosted.host.core.rank.model.lasting_failure == hosted.host.core.rank.model.failure
        assert hosted.emitted == [], "alerts are raised from the status, by one mechanism"


async def test_a_bug_in_a_timer_a_message_or_a_workers_word_is_told_and_outlived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise KeyError("a bug")

    beat = Heartbeat("ready", 0, 0.0, "fast", "", 0.0, 0.0, 0.0, 0, 0)
    async with a_host(tmp_path) as hosted:
        host = hosted.host
        for method in ("handle_timer", "order", "worker_said"):
            monkeypatch.setattr(host.core.rank, method, breaks)
        host.feed(EngineMessageReceived(A, FormOrder(A, "plan1", 1, "prepare")))
        host.feed(WorkerSaid(beat))
        await hosted.until(lambda: len(hosted.errors()) >= 3, "all three are told")
        assert set(hosted.errors()) == {f"a FormOrder of {A}", "the worker's Heartbeat", "a timer"}
        monkeypatch.undo()
        told = len(hosted.errors())
        host.feed(EngineMessageReceived(NodeId("b" * 16), FormOrder(A, "plan1", 1, "prepare")))
        await asyncio.sleep(0.05)
        assert len(hosted.errors()) == told


@pytest.mark.parametrize("hosts_a_rank", [True, False])
async def test_a_node_without_a_rank_sweeps_what_an_earlier_life_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts_a_rank: bool
) -> None:
    async with a_host(tmp_path) as hosted:
        swept: list[bool] = []
        monkeypatch.setattr(hosted.host.worker, "sweep", lambda: swept.append(True))
        for number in (1, 2):
            hosted.host.feed(PlanCommitted(a_plan(A if hosts_a_rank else B, number=number), "a plan"))
        await asyncio.sleep(0.2)
        assert len(swept) == (0 if hosts_a_rank else 1)


async def test_a_plan_that_comes_before_the_host_runs_is_followed_all_the_same(tmp_path: Path) -> None:
    async with a_host(tmp_path, a_plan(A, model=str(tmp_path))) as hosted:
        await hosted.until(lambda: hosted.host.core.rank.phase is RankPhase.FAILED, "the model is looked for")
        assert hosted.host.core.rank.model.failure is not None
        assert hosted.host.core.rank.model.failure[0] == "no_config"


async def test_what_mlx_recommends_is_handed_on_and_wired_memory_is_watched(tmp_path: Path) -> None:
    async with a_host(tmp_path) as hosted:
        told: list[int] = []
        hosted.host.on_recommended = told.append
        hosted.host._worker_said(hello(recommended_bytes=7 << 30))
        hosted.host._worker_said(hello())
        assert told == [7 << 30]
        hosted.host.wired_bytes = lambda: 3 << 30
        watching = asyncio.create_task(hosted.host._watch_wired())
        wired = hosted.host.core.rank.worker.wired
        await hosted.until(lambda: wired._now == 3 << 30, "the core knows what is wired")
        watching.cancel()
