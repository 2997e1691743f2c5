"""Members of the cluster are believed about themselves, and about nothing else."""

from __future__ import annotations

import pytest

from exod.core.engine.engine_events import (
    ClientAsked,
    DeliverError,
    DeliverToken,
    EngineCommand,
    EngineMessageReceived,
    LogIgnored,
    PlanCommitted,
    SendTo,
)
from exod.core.engine.engine_messages import (
    CancelRequest,
    EngineMessage,
    Queued,
    RelayAgain,
    RelayedOutput,
    SubmitRefused,
)
from exod.core.engine.relay import Relay
from exod.core.engine_core import EngineCore
from exod.model import NodeId
from exoengine.protocol import GenerationRequest, SyncSettings
from tests.core.engine.engine_samples import A, B, C, a_plan, only, submit, token


def origin_without_a_rank() -> EngineCore:
    """C, whose client asked for "r"; A coordinates, and is rank 0 before B."""
    core = EngineCore(C, 1, SyncSettings(), 60.0, 52420)
    core.handle(PlanCommitted(a_plan(A, B), "why"), 0.0)
    core.handle(ClientAsked(GenerationRequest("r", 10, prompt="x")), 0.1)
    return core


def says(core: EngineCore, sender: NodeId, message: EngineMessage) -> list[EngineCommand]:
    return core.handle(EngineMessageReceived(sender, message), 1.0)


def test_only_the_coordinators_rank_relays_an_answer() -> None:
    core = origin_without_a_rank()
    output = RelayedOutput((token("r", 0),), 0)
    assert only(says(core, B, output), DeliverToken) == []
    assert only(says(core, B, output), LogIgnored) == [LogIgnored(B, "RelayedOutput")]
    assert len(only(says(core, A, output), DeliverToken)) == 1


def test_what_the_last_plans_relay_had_on_its_way_is_taken() -> None:
    core = origin_without_a_rank()
    core.handle(PlanCommitted(a_plan(B, number=2), "A has no rank any more"), 0.5)
    assert len(only(says(core, A, RelayedOutput((token("r", 0),), 0)), DeliverToken)) == 1
    core.handle(PlanCommitted(a_plan(B, number=3), "again"), 0.6)
    assert only(says(core, A, RelayedOutput((token("r", 1),), 1)), DeliverToken) == []


@pytest.mark.parametrize("message", [SubmitRefused("r", "queue_full", "no", 1.0), Queued("r")])
def test_only_the_coordinator_says_what_becomes_of_a_request(message: EngineMessage) -> None:
    core = origin_without_a_rank()
    commands = says(core, B, message)
    assert only(commands, DeliverError) == []
    assert [ignored.sender for ignored in only(commands, LogIgnored)] == [B]
    assert only(says(core, A, message), LogIgnored) == []


def test_a_request_is_cancelled_by_its_origin_or_the_coordinator_alone() -> None:
    core = EngineCore(A, 1, SyncSettings(), 60.0, 52420)
    core.handle(PlanCommitted(a_plan(A, B), "why"), 0.0)
    for _ in range(2):  # one is begun, one waits
        says(core, C, submit("r", origin=C))
    assert core.scheduler.waiting == 1
    says(core, B, CancelRequest("r"))
    assert core.scheduler.waiting == 1
    says(core, C, CancelRequest("r"))
    assert core.scheduler.waiting == 0


def test_an_answer_is_sent_again_to_its_origin_alone() -> None:
    relay = Relay()
    relay.note(token("r", 0), 0, C)
    assert relay.after("r", 0, B) == []
    assert len(relay.after("r", 0, C)) == 1
    unknown = Relay()
    unknown.note(token("r", 0), 0, NodeId(""))
    assert len(unknown.after("r", 0, B)) == 1, "a generation that outlived its daemon is claimed"


def test_nobody_is_sent_what_another_member_asked_for() -> None:
    core = EngineCore(A, 1, SyncSettings(), 60.0, 52420)
    core.handle(PlanCommitted(a_plan(A, B), "why"), 0.0)
    says(core, C, submit("r", origin=C))
    assert only(says(core, B, RelayAgain("r", 0)), LogIgnored) == [LogIgnored(B, "RelayAgain")]
    sent = [one for one in only(says(core, B, RelayAgain("r", 0)), SendTo) if one.node == B]
    assert not [one for one in sent if isinstance(one.message, RelayedOutput)]


def test_the_coordinator_relays_whatever_its_place_in_the_ring() -> None:
    core = EngineCore(C, 1, SyncSettings(), 60.0, 52420)
    core.handle(PlanCommitted(a_plan(B, A), "A coordinates; B is rank 0"), 0.0)
    commands = core.handle(ClientAsked(GenerationRequest("r", 10, prompt="x")), 0.1)
    assert {sent.node for sent in only(commands, SendTo)} == {A}
    output = RelayedOutput((token("r", 0),), 0)
    assert only(says(core, B, output), DeliverToken) == []
    assert len(only(says(core, A, output), DeliverToken)) == 1
