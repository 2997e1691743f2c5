"""Who is told to wait on while a rank computes."""

from __future__ import annotations

import msgspec

from exod.core.engine.engine_events import EngineCommand, EngineMessageReceived, PlanCommitted, WorkerSaid
from exod.core.engine.engine_messages import CancelRequest
from exod.core.engine_core import EngineCore
from exoengine.protocol import KeepWaiting, SyncSettings
from tests.core.engine.engine_samples import A, B, a_plan, beat, begin, hello, status, told

COMPUTES = msgspec.structs.replace(beat("generating"), computing=True, in_step_s=3.0)


def a_generating_node(**fields: object) -> EngineCore:
    """B, whose worker an earlier daemon left at a request of all ranks."""
    core = EngineCore(B, 1, SyncSettings(), 60.0, 52420)
    core.handle(PlanCommitted(a_plan(A, B), "why"), 0.0)
    core.rank.worker.started(0.0)
    core.handle(WorkerSaid(hello(layers=(6, 12), **fields)), 0.1)
    core.handle(EngineMessageReceived(A, begin(1, origin=A)), 0.2)
    return core


def waits(commands: list[EngineCommand]) -> bool:
    return any(isinstance(message, KeepWaiting) for message in told(commands))


def test_a_worker_waits_on_while_its_own_step_or_anothers_is_computed() -> None:
    core = a_generating_node(keeps_waiting=True)
    assert waits(core.handle(WorkerSaid(COMPUTES), 1.0))
    assert not waits(core.handle(WorkerSaid(beat("generating")), 2.0))
    assert waits(core.handle(EngineMessageReceived(A, status(A, seq=1, computing=True)), 3.0))
    assert not waits(core.handle(EngineMessageReceived(A, status(A, seq=2)), 4.0))


def test_nobody_waits_for_a_request_that_was_cancelled() -> None:
    core = a_generating_node(keeps_waiting=True)
    core.handle(EngineMessageReceived(A, CancelRequest("r")), 0.5)
    assert not waits(core.handle(WorkerSaid(COMPUTES), 1.0))
    assert not waits(core.handle(EngineMessageReceived(A, status(A, seq=1, computing=True)), 3.0))


def test_a_worker_of_an_earlier_version_is_not_told_what_it_does_not_know() -> None:
    core = a_generating_node()
    assert not waits(core.handle(WorkerSaid(COMPUTES), 1.0))
